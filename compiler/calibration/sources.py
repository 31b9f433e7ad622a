# SPDX-License-Identifier: Apache-2.0
"""Sources of text: each yields documents in an order that a seed decides."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunec.compiler.calibration import python_stdlib

#: Files up to this size are identified by their content, larger ones by size and time.
_HASHED_BYTES = 64 * 2**20

#: Documents that a stream is shuffled within.
_SHUFFLE_BUFFER = 10_000


class SourceError(Exception):
    """A source of text that cannot be read, or holds too little. `hint` says what would help."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def documents(source: Mapping[str, Any], seed: int, base: Path) -> Iterator[str]:
    """The documents of a source (a recipe's source section as data), shuffled by the seed.

    Relative `files` are relative to `base`.
    """
    fields = dict(source)
    if "files" in fields:
        fields["files"] = [base / name for name in fields["files"]]
    return _READERS[fields.pop("kind")](seed=seed, **fields)


def identity(source: Mapping[str, Any], base: Path) -> str:
    """A digest that changes when the text does; of a hub data set, its name and revision."""
    paths: list[Path] = []
    if source["kind"] == "python_stdlib":
        paths = python_stdlib.files(source["split"])
    elif "files" in source:
        paths = [base / name for name in source["files"]]
    digest = hashlib.sha256(json.dumps(dict(source), sort_keys=True).encode())
    for path in paths:
        digest.update(file_identity(path).encode())
    return digest.hexdigest()[:20]


def file_identity(path: Path) -> str:
    """Content of a small file; size and modification time of a large one, as build tools do."""
    with _reading(path):
        stat = path.stat()
        if stat.st_size > _HASHED_BYTES:
            return f"{path.name}:{stat.st_size}:{stat.st_mtime_ns}"
        return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from None


def _read_text(path: Path) -> str:
    with _reading(path):
        return path.read_text(encoding="utf-8", errors="replace")


def _files(paths: Sequence[Path], seed: int) -> Iterator[str]:
    shuffled = list(paths)
    random.Random(seed).shuffle(shuffled)
    yield from map(_read_text, shuffled)


def _python_stdlib(seed: int, split: str) -> Iterator[str]:
    return _files(python_stdlib.files(split), seed)


def _text(seed: int, files: Sequence[Path]) -> Iterator[str]:
    return _files(files, seed)


def _jsonl(seed: int, files: Sequence[Path], field: str) -> Iterator[str]:
    """Lines are shuffled in memory: their offsets only, never their text."""
    lines: list[tuple[Path, int]] = []
    for path in files:
        with _reading(path), path.open("rb") as file:
            offset = 0
            for line in file:
                if line.strip():
                    lines.append((path, offset))
                offset += len(line)
    random.Random(seed).shuffle(lines)
    for path, offset in lines:
        with _reading(path), path.open("rb") as file:
            file.seek(offset)
            line = file.readline()
        try:
            text = json.loads(line)[field]
        except (ValueError, KeyError, TypeError, RecursionError):
            text = None
        if not isinstance(text, str):
            number = 1 + path.read_bytes()[:offset].count(b"\n")
            raise SourceError(f"{path}:{number}: no JSON object with a text field {field!r}")
        yield text


def _hub(
    seed: int, dataset: str, config: str | None, split: str, field: str, revision: str | None
) -> Iterator[str]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise SourceError(
            "a hub source needs the datasets library", hint="pip install 'prunec[hub]'"
        ) from None
    try:
        rows = load_dataset(dataset, config, split=split, revision=revision, streaming=True)
        shuffled = rows.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER)
        for row in shuffled:
            if not isinstance(row.get(field), str):
                raise SourceError(
                    f"data set {dataset} has no text field {field!r}",
                    hint=f"its fields: {', '.join(map(str, row))}",
                )
            yield row[field]
    except (OSError, ValueError) as error:
        # What the library raises for an unknown name, a missing split and an absent network.
        raise SourceError(f"data set {dataset} cannot be read: {error}") from None


_READERS: Mapping[str, Callable[..., Iterator[str]]] = {
    "python_stdlib": _python_stdlib,
    "text": _text,
    "jsonl": _jsonl,
    "hub": _hub,
}
