# SPDX-License-Identifier: Apache-2.0
"""Writing files whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path


def write_files(folder: Path, files: Mapping[str, bytes], stale: Iterable[str] = ()) -> list[Path]:
    """Write files by name, each whole or not at all, and return their paths.

    Those of `stale` that are not among them are removed; the folder is created if needed.
    OSError if it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in stale:
        if name not in files:
            (folder / name).unlink(missing_ok=True)
    for name, data in files.items():
        _write_atomically(folder / name, data)
    return [folder / name for name in files]


def utf8(text: str) -> bytes:
    """Text as a file holds it."""
    # A tokenizer may decode to lone surrogates, which UTF-8 cannot hold.
    return text.encode("utf-8", "replace")


def _write_atomically(path: Path, data: bytes) -> None:
    if path.is_file() and path.read_bytes() == data:
        return  # a build that is interrupted again and again still gets to its end
    # A fixed name, so that what a killed run left behind is overwritten, not collected.
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
