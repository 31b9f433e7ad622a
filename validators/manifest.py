# SPDX-License-Identifier: Apache-2.0
"""Whether a build's folder still holds what its manifest says."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath

from prunec.validators.errors import ValidationError
from prunec.validators.headers import read_json_object

MANIFEST = "manifest.json"


def check_manifest(folder: Path) -> list[str]:
    """One sentence for every file that is missing, changed or not listed; empty if none is.

    Reads every listed file once, for its SHA-256. A manifest that is itself missing or damaged
    is the one sentence.
    """
    if not (folder / MANIFEST).is_file():
        return [f"{MANIFEST} is missing: the build did not finish, or the file was removed"]
    try:
        listed = read_json_object(folder / MANIFEST).get("files")
    except ValidationError as error:
        return [error.message]
    if not isinstance(listed, dict):
        return [f"{MANIFEST} does not list the files of the build"]
    problems: list[str] = []
    for name, entry in sorted(listed.items()):
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts:
            problems.append(f"{MANIFEST} lists a file outside the build: {name!r}")
        elif problem := _compare(folder / pure, entry):
            problems.append(f"{name} {problem}")
    # Hidden at the top: the build's own store and lock, no part of what it delivers.
    delivered = [path for path in folder.glob("*") if not path.name.startswith(".")]
    present = {
        path.relative_to(folder).as_posix()
        for top in delivered
        for path in (top, *top.rglob("*"))
        if not path.is_dir()
    }
    problems += [
        f"{name} is not listed in {MANIFEST}" for name in sorted(present - {MANIFEST, *listed})
    ]
    return problems


def _compare(path: Path, entry: object) -> str | None:
    """What is wrong with one listed file, or None."""
    if not isinstance(entry, dict):
        return f"has no hash in {MANIFEST}"
    if not path.is_file():
        return "is missing"
    try:
        size = path.stat().st_size
        if size != entry.get("bytes"):
            return f"was changed: it has {size} bytes, the manifest says {entry.get('bytes')}"
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if digest != entry.get("sha256"):
        return "was changed: its SHA-256 is not the manifest's"
    return None
