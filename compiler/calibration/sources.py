# SPDX-License-Identifier: Apache-2.0
"""Sources of text: each yields documents in an order that a seed decides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prunec.compiler.calibration import python_stdlib, text_files
from prunec.compiler.calibration.chats import Conversation, Message, Template
from prunec.compiler.calibration.document import Document, SourceError, Tally, in_pieces
from prunec.compiler.calibration.json_array import JsonArray
from prunec.compiler.calibration.json_lines import JsonLines
from prunec.compiler.calibration.opening import compression, head, looks, not_text, reading
from prunec.compiler.calibration.order import Readable, ordered
from prunec.compiler.calibration.rows import Choice, TextField
from prunec.compiler.calibration.tables import (
    HubDataset,
    ParquetFile,
    SavedDataset,
    is_saved_dataset,
)

__all__ = ["Document", "SourceError", "Tally", "documents", "identity"]

#: Files up to this size are identified by their content, larger ones by size and time.
_HASHED_BYTES = 64 * 2**20

#: Longer documents come in pieces of about so many bytes, or characters where they are rows.
PIECE = 64 * 2**10

#: Bytes of text in a byte of a compressed file, about.
_DECOMPRESSED = 4

_NAMED = 3  # files that a sentence names


def documents(
    source: Mapping[str, Any],
    seed: int | None,
    base: Path,
    *,
    template: Template | None = None,
    tally: Tally | None = None,
    keep_empty: bool = False,
) -> Iterator[Document]:
    """The documents of a source (a recipe's source section as data), shuffled by the seed; in the
    source's own order where that is None.

    Relative `files` are relative to `base`. Who reads them and how they are joined is settled
    elsewhere. Only as much is read as is asked for. Documents of
    white space alone are skipped, and counted in `tally` with rows whose text is null. SourceError
    if nothing is left, and where something cannot be read.

    template: the model's chat template, which a chat source needs
    """
    tally = Tally() if tally is None else tally
    templated = source["kind"] == "chat"
    for found in ordered(_readables(source, base, template), seed):
        if found.text is None:
            tally.missing += 1
            continue
        if found.text and not found.text.isspace():
            tally.read += 1
        else:
            tally.empty += 1
            if not keep_empty:
                continue
        text = _without_surrogates(found.text)
        yield from in_pieces(Document(text, found.name, found.whole, templated, found.of), PIECE)
    if tally.read == 0:
        raise SourceError(_nothing(source, tally), hint="give it text")


def check(source: Mapping[str, Any], base: Path) -> None:
    """SourceError where a file's first block shows that it cannot be read; the hub is not asked."""
    if source["kind"] == "text":
        for path in _paths(source, base):
            text_files.check(path)
    elif "files" in source:
        for file in _readables(source, base, lambda messages: "checked"):
            if isinstance(file, SavedDataset):
                file.check()
            else:
                next(file.records(None), None)


def identity(source: Mapping[str, Any], base: Path) -> str:
    """A digest that changes when the text does; of a hub data set, its name and revision."""
    digest = hashlib.sha256(json.dumps(dict(source), sort_keys=True).encode())
    for path in _paths(source, base):
        for file in sorted(path.iterdir()) if is_saved_dataset(path) else [path]:
            digest.update(file_identity(file).encode())
    return digest.hexdigest()[:20]


def file_bytes(source: Mapping[str, Any], base: Path) -> int:
    """Bytes of text in a source's files, about; 0 where it has none."""
    found = 0
    for path in _paths(source, base):
        with reading(path):
            if is_saved_dataset(path):
                found += sum(file.stat().st_size for file in path.iterdir())
            else:
                found += path.stat().st_size * (_DECOMPRESSED if compression(path) else 1)
    return found


def file_identity(path: Path) -> str:
    """Content of a small file; size and modification time of a large one, as build tools do."""
    with reading(path):
        stat = path.stat()
        if stat.st_size > _HASHED_BYTES:
            return f"{path.name}:{stat.st_size}:{stat.st_mtime_ns}"
        return hashlib.sha256(path.read_bytes()).hexdigest()


def _paths(source: Mapping[str, Any], base: Path) -> list[Path]:
    if source["kind"] == "python_stdlib":
        return python_stdlib.files(source["split"])
    return [base / name for name in source.get("files") or ()]


def _readables(source: Mapping[str, Any], base: Path, template: Template | None) -> list[Readable]:
    """The files of a source, or its data set."""
    if source["kind"] == "python_stdlib":
        root = python_stdlib.library()
        paths = python_stdlib.files(source["split"], root)
        return [text_files.TextFile(path, str(path.relative_to(root)), PIECE) for path in paths]
    if source["kind"] == "text":
        return [text_files.TextFile(base / name, name, PIECE) for name in source["files"]]
    choice: Choice = TextField(source["field"])
    if source["kind"] == "chat":
        choice = Conversation(source["field"], template or _no_template)
    if source.get("files"):
        return [_file_of_rows(base / name, name, choice) for name in source["files"]]
    dataset, config, split, revision = (
        source[key] for key in ("dataset", "config", "split", "revision")
    )
    return [HubDataset(dataset, config, split or "train", revision, choice)]


def _file_of_rows(path: Path, name: str, choice: Choice) -> Readable:
    """A file by what it holds, not by its name."""
    if is_saved_dataset(path):
        return SavedDataset(path, name, choice)
    start = head(path)
    what = looks(start)
    if what == "a Parquet file" and not compression(path):
        return ParquetFile(path, name, choice)
    if what and what != "Latin-1":  # of which the line will be named
        raise not_text(path, what)
    array = start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    return (JsonArray if array else JsonLines)(path, name, choice)


def _no_template(messages: list[Message]) -> str:
    raise ValueError("the model has none")


def _without_surrogates(text: str) -> str:
    """The text with what is no character, as half of an escaped pair, replaced: it could not be
    written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _nothing(source: Mapping[str, Any], tally: Tally) -> str:
    names = list(source.get("files") or [source.get("dataset", source["kind"])])
    more = f" and {len(names) - _NAMED} more files" if names[_NAMED:] else ""
    held = [f"{tally.empty:,} are empty"] if tally.empty else []
    held += [f"{tally.missing:,} hold null"] if tally.missing else []
    documents = f"of {tally.skipped:,} documents " + " and ".join(held) if held else "no documents"
    return f"no text in {', '.join(map(str, names[:_NAMED]))}{more}: {documents}"
