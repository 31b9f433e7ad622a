# SPDX-License-Identifier: Apache-2.0
"""Python's standard library as text: always at hand, and cut into splits that never overlap.

A split is a set of top-level *modules*, not of files: `pathlib.py` (Python 3.11) and
`pathlib/__init__.py` (3.13) are one module, so a text never changes sides between interpreters.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

#: Modules on which searches are scored. No model of ours is trained or calibrated on them.
SEARCH = frozenset(
    [
        "base64",
        "bdb",
        "doctest",
        "functools",
        "gettext",
        "imaplib",
        "plistlib",
        "pdb",
        "smtplib",
        "socketserver",
        "tempfile",
        "trace",
        "traceback",
        "uuid",
        "weakref",
    ]
)

#: Modules on which results are reported. Nothing is trained, calibrated or chosen on them.
EVALUATION = frozenset(
    [
        "calendar",
        "configparser",
        "csv",
        "dataclasses",
        "difflib",
        "fractions",
        "heapq",
        "ipaddress",
        "mailbox",
        "pprint",
        "shlex",
        "shutil",
        "statistics",
        "tarfile",
        "textwrap",
    ]
)

SPLITS = ("calibration", "search", "evaluation")

#: Neither the interpreter's tests (many distributions leave them out) nor tables of data.
_LEFT_OUT = frozenset(
    [
        "test",
        "tests",
        "idle_test",
        "site-packages",
        "dist-packages",
        "encodings",
        "pydoc_data",
        "lib2to3",
        "__pycache__",
        "_pyrepl",
    ]
)


def library() -> Path:
    """The folder of the library of the interpreter that runs."""
    return Path(sysconfig.get_paths()["stdlib"])


def files(split: str, root: Path | None = None) -> list[Path]:
    """The files of one split, sorted by path.

    `calibration` is everything that is held out of neither `search` nor `evaluation`.
    """
    root = root or library()
    return [
        path for path in sorted(root.rglob("*.py")) if split_of(path.relative_to(root)) == split
    ]


def split_of(path: Path) -> str | None:
    """The split of a file, by its path relative to the library's root; None if it is in none."""
    if _LEFT_OUT.intersection(path.parts) or path.name.startswith("_sysconfigdata"):
        return None
    if path.parts[0].startswith("config-"):
        return None
    module = path.parts[0].removesuffix(".py")
    if module in SEARCH:
        return "search"
    return "evaluation" if module in EVALUATION else "calibration"
