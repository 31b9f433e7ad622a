# SPDX-License-Identifier: Apache-2.0
"""English prose that is on every machine that prunec is: what installed packages say of themselves.

A second domain beside Python code, for calibration and for judging, in halves with no package in
common. Which packages there are decides what it says, so numbers hold for one environment.
"""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path


def prose() -> tuple[list[str], list[str]]:
    """(files to fit to, files to judge on): the METADATA of packages, dealt by their names."""
    site = Path(sysconfig.get_paths()["purelib"])
    halves: tuple[list[str], list[str]] = ([], [])
    for path in sorted(site.glob("*.dist-info/METADATA")):
        name = path.parent.name.partition("-")[0].lower()
        halves[hashlib.sha256(name.encode()).digest()[0] % 2].append(str(path))
    return halves


def listed(files: list[str]) -> str:
    """Files as a recipe's `source`, in one line of YAML."""
    return f"{{kind: text, files: [{', '.join(files)}]}}"


def judged_on_prose(tokens: int = 32_768) -> str:
    """The `--set` value that has a build judged on the second half, too."""
    _, judging = prose()
    check = f"source: {listed(judging)}, sequence_length: 256, tokens: {tokens}"
    return f"validate.elsewhere={{prose: {{{check}}}}}"
