# SPDX-License-Identifier: Apache-2.0
"""Files of plain text, each one document; a long one comes in pieces, of which any can be read."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from prunec.compiler.calibration.document import LOOK, Record, SourceError, border
from prunec.compiler.calibration.opening import (
    compression,
    decoded,
    head,
    looks,
    not_text,
    opened,
    reading,
)
from prunec.compiler.calibration.order import shuffled_numbers

_ROWS = re.compile(rb"\s*(\[\s*)?\{")
_SUFFIXES = (".jsonl", ".ndjson", ".json")


def check(path: Path) -> None:
    """SourceError if the first bytes show that a file is no UTF-8 text, or that it holds rows."""
    if path.is_dir():
        raise SourceError(f"{path} is a data set, not plain text", hint="kind: jsonl reads it")
    start = head(path)
    if what := looks(start):
        raise not_text(path, what)
    rows = _ROWS.match(start.removeprefix(b"\xef\xbb\xbf"))
    suffixes = {suffix.lower() for suffix in path.suffixes[-2:]}
    # A JSON file may be a text among others, as in a repository; a list of objects is a data set.
    if rows and suffixes.intersection(_SUFFIXES[:2] if not rows[1] else _SUFFIXES):
        raise SourceError(f"{path} holds rows of JSON, not plain text", hint="kind: jsonl reads it")


@dataclass(frozen=True)
class TextFile:
    """name: the file's in its documents' names; piece: bytes of a piece, about, over 0."""

    path: Path
    name: str
    piece: int

    @property
    def size(self) -> int:
        with reading(self.path):
            return self.path.stat().st_size

    def records(self, rng: random.Random | None) -> Iterator[Record]:
        if compression(self.path):
            yield from self._streamed()
            return
        size = self.size
        count = max(1, -(-size // self.piece))
        for number in shuffled_numbers(count, rng):
            with reading(self.path), self.path.open("rb") as file:
                start = self._cut(file, number, size)
                stop = self._cut(file, number + 1, size)
                file.seek(start)
                data = file.read(stop - start)
            if data or count == 1:
                place = None if count == 1 else number * self.piece
                yield self._record(data, start, place, whole=stop == size)

    def _cut(self, file: IO[bytes], number: int, size: int) -> int:
        """Where a piece begins: at a border behind its number's place, the same for all who ask."""
        at = number * self.piece
        if number == 0 or at >= size:
            return min(at, size)
        file.seek(at)
        return min(at + _border(file.read(min(LOOK, self.piece))), size)

    def _streamed(self) -> Iterator[Record]:
        start, data = 0, b""
        with reading(self.path), opened(self.path) as file:
            while more := file.read(self.piece + LOOK - len(data)):
                data += more
                if len(data) < self.piece + LOOK:
                    continue
                stop = self.piece + _border(data[self.piece :])
                yield self._record(data[:stop], start, start, whole=False)
                start, data = start + stop, data[stop:]
        yield self._record(data, start, start or None, whole=True)

    def _record(self, data: bytes, start: int, place: int | None, *, whole: bool) -> Record:
        """`place`: what a piece is called by, None where the file is in one."""
        text = decoded(self.path, data, start, ends=whole)
        if place is None:
            return Record(self.name, text, len(data))
        return Record(f"{self.name}@{place}", text, len(data), whole, of=self.name)


def _border(data: bytes) -> int:
    """Where bytes of UTF-8 are best cut, see `border`; at the least, not within a character."""
    if found := border(data.decode("latin-1")):
        return found
    return next((at for at, byte in enumerate(data) if byte & 0xC0 != 0x80), 0)
