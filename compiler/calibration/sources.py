# SPDX-License-Identifier: Apache-2.0
"""Sources of text: each yields documents in an order that a seed decides."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from prunec.compiler.calibration import python_stdlib

#: Files up to this size are identified by their content, larger ones by size and time.
_HASHED_BYTES = 64 * 2**20

#: Carries a row's number through the shuffling of a stream.
_NUMBER = "__number__"

#: Documents that a stream is shuffled within.
_SHUFFLE_BUFFER = 10_000


Item = TypeVar("Item")


class SourceError(Exception):
    """A source of text that cannot be read, or holds too little. `hint` says what would help."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True)
class Document:
    """A document, or a piece of one that is long.

    name: which one it is within its source, whatever the seed: a file, a row of a file, a piece
    whole: the document ends here; behind the other pieces of one there belongs no end token
    templated: a chat template has put special tokens into the text; none belong around it
    """

    text: str
    name: str
    whole: bool = True
    templated: bool = False


def documents(source: Mapping[str, Any], seed: int | None, base: Path) -> Iterator[Document]:
    """The documents of a source (a recipe's source section as data), shuffled by the seed; in the
    source's own order where that is None.

    Relative `files` are relative to `base`. Who reads them and how they are joined is settled
    elsewhere.
    """
    fields = {name: value for name, value in source.items() if name not in ("holdout", "join")}
    return _READERS[fields.pop("kind")](seed=seed, base=base, **fields)


def identity(source: Mapping[str, Any], base: Path) -> str:
    """A digest that changes when the text does; of a hub data set, its name and revision."""
    digest = hashlib.sha256(json.dumps(dict(source), sort_keys=True).encode())
    for path in _paths(source, base):
        digest.update(file_identity(path).encode())
    return digest.hexdigest()[:20]


def file_bytes(source: Mapping[str, Any], base: Path) -> int:
    """Bytes of a source's files; 0 where it has none."""
    found = 0
    for path in _paths(source, base):
        with _reading(path):
            found += path.stat().st_size
    return found


def _paths(source: Mapping[str, Any], base: Path) -> list[Path]:
    if source["kind"] == "python_stdlib":
        return python_stdlib.files(source["split"])
    return [base / name for name in source.get("files", ())]


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


def _files(names: Sequence[str], seed: int | None, base: Path) -> Iterator[Document]:
    for name in _ordered(names, seed):
        yield Document(_read_text(base / name), name)


def _ordered(items: Sequence[Item], seed: int | None) -> list[Item]:
    found = list(items)
    if seed is not None:
        random.Random(seed).shuffle(found)
    return found


def _python_stdlib(seed: int | None, base: Path, split: str) -> Iterator[Document]:
    root = python_stdlib.library()
    names = [str(path.relative_to(root)) for path in python_stdlib.files(split, root)]
    return _files(names, seed, root)


def _text(seed: int | None, base: Path, files: Sequence[str]) -> Iterator[Document]:
    return _files(files, seed, base)


def _jsonl(seed: int | None, base: Path, files: Sequence[str], field: str) -> Iterator[Document]:
    """Lines are shuffled in memory: their offsets only, never their text."""
    lines: list[tuple[str, int, int]] = []
    for name in files:
        path = base / name
        with _reading(path), path.open("rb") as file:
            offset = 0
            for number, line in enumerate(file, 1):
                if line.strip():
                    lines.append((name, number, offset))
                offset += len(line)
    for name, number, offset in _ordered(lines, seed):
        path = base / name
        with _reading(path), path.open("rb") as file:
            file.seek(offset)
            line = file.readline()
        try:
            text = json.loads(line)[field]
        except (ValueError, KeyError, TypeError, RecursionError):
            text = None
        if not isinstance(text, str):
            raise SourceError(f"{path}:{number}: no JSON object with a text field {field!r}")
        yield Document(text, f"{name}:{number}")


def _hub(
    seed: int | None,
    base: Path,
    dataset: str,
    config: str | None,
    split: str,
    field: str,
    revision: str | None,
) -> Iterator[Document]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise SourceError(
            "a hub source needs the datasets library", hint="pip install 'prunec[hub]'"
        ) from None
    try:
        rows = load_dataset(dataset, config, split=split, revision=revision, streaming=True)
        numbered = rows.map(lambda row, number: row | {_NUMBER: number}, with_indices=True)
        if seed is not None:
            numbered = numbered.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER)
        for row in numbered:
            number = row.pop(_NUMBER)
            if not isinstance(row.get(field), str):
                raise SourceError(
                    f"data set {dataset} has no text field {field!r}",
                    hint=f"its fields: {', '.join(map(str, row))}",
                )
            yield Document(row[field], f"row {number}")
    except (OSError, ValueError) as error:
        # What the library raises for an unknown name, a missing split and an absent network.
        raise SourceError(f"data set {dataset} cannot be read: {error}") from None


_READERS: Mapping[str, Callable[..., Iterator[Document]]] = {
    "python_stdlib": _python_stdlib,
    "text": _text,
    "jsonl": _jsonl,
    "hub": _hub,
}
