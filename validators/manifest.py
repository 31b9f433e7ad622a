# SPDX-License-Identifier: Apache-2.0
"""Whether a folder still holds what was written: a build by its manifest, an artefact by its own
list of files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from prunec.validators.errors import ValidationError
from prunec.validators.headers import read_json_object

MANIFEST = "manifest.json"
#: Lies in every artefact, so that it can be checked wherever it is copied to.
LISTING = "prunec/files.json"
#: An artefact's model card, which is its users' to edit.
CARD = "README.md"

Reading = Callable[[str], None]


def _silent(name: str) -> None:
    """Tells nobody of the file that is going to be read."""


def check_manifest(folder: Path, reading: Reading = _silent) -> list[str]:
    """One sentence for every file that is missing, changed or not listed; empty if none is.

    Reads every listed file once, for its SHA-256; `reading` is told its name before. An edited
    model card is no change. A manifest that is itself missing or damaged is the one sentence.
    """
    if not (folder / MANIFEST).is_file():
        return [f"{MANIFEST} is missing: the build did not finish, or the file was removed"]
    problems, listed = _check_listed(folder, MANIFEST, reading)
    if listed is None:
        return problems
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


def check_listing(folder: Path, reading: Reading = _silent) -> list[str]:
    """As `check_manifest`, for an artefact by itself; other files may have come to lie beside it.

    Empty for a folder without such a list, which another tool may have written.
    """
    return _check_listed(folder, LISTING, reading)[0] if (folder / LISTING).is_file() else []


def _check_listed(
    folder: Path, listing: str, reading: Reading
) -> tuple[list[str], dict[str, object] | None]:
    """What is wrong with files that a list names, and the list; None if there is none to read."""
    try:
        listed = read_json_object(folder / listing).get("files")
    except ValidationError as error:
        return [error.message], None
    if not isinstance(listed, dict):
        return [f"{listing} does not list any files"], None
    problems = []
    for name, entry in sorted(listed.items()):
        reading(name)
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts:
            problems.append(f"{listing} lists a file outside its folder: {name!r}")
        elif len(pure.parts) == 2 and pure.name == CARD and (folder / pure).is_file():
            continue
        elif problem := _compare(folder / pure, entry, listing):
            problems.append(f"{name} {problem}")
    return problems, listed


def _compare(path: Path, entry: object, listing: str) -> str | None:
    """What is wrong with one listed file, or None."""
    if not isinstance(entry, dict):
        return f"has no hash in {listing}"
    if not path.is_file():
        return "is missing"
    try:
        size = path.stat().st_size
        if size != entry.get("bytes"):
            return f"was changed: it has {size} bytes, {listing} says {entry.get('bytes')}"
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if digest != entry.get("sha256"):
        return f"was changed: its SHA-256 is not that of {listing}"
    return None
