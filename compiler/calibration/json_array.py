# SPDX-License-Identifier: Apache-2.0
"""Files that are one JSON array of rows: read from the beginning, a row at a time."""

from __future__ import annotations

import codecs
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from prunec.compiler.calibration.document import Record, SourceError
from prunec.compiler.calibration.json_lines import BLOCK, LONGEST_ROW
from prunec.compiler.calibration.opening import opened, reading
from prunec.compiler.calibration.rows import Choice, RowError, record


@dataclass(frozen=True)
class JsonArray:
    """A file of which the first sign is `[`. Rows are named by their number."""

    path: Path
    name: str
    choice: Choice

    @property
    def size(self) -> int:
        with reading(self.path):
            return self.path.stat().st_size

    def records(self, rng: random.Random | None) -> Iterator[Record]:
        with reading(self.path), opened(self.path) as file:
            number, rows = 1, _rows(file)
            while True:
                try:
                    row = next(rows)
                    yield record(self.choice, f"{self.name}@{number}", row)
                except StopIteration:
                    return
                except RowError as error:
                    raise error.at(f"{self.path}, row {number}") from None
                except (ValueError, RecursionError):
                    raise SourceError(
                        f"{self.path}, row {number}: the JSON array is broken"
                    ) from None
                number += 1


def _rows(file: IO[bytes]) -> Iterator[Any]:
    """The rows of an array. ValueError or RecursionError where it is broken."""
    text = _Text(file)
    text.take("[")
    while text.sign() != "]":
        yield text.value()
        if text.sign() != "]":
            text.take(",")
            if text.sign() == "]":
                raise ValueError("nothing behind a comma")
    text.take("]")
    if text.sign():
        raise ValueError("more than an array")


class _Text:
    """JSON that is read as far as it is needed. `text[at:]` is what has not been taken."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._whole = "", 0, False

    def sign(self) -> str:
        """The next character that is no white space; empty behind the last."""
        while True:
            while self._at < len(self._text) and self._text[self._at].isspace():
                self._at += 1
            if self._at < len(self._text) or self._whole:
                return self._text[self._at : self._at + 1]
            self._read()

    def take(self, sign: str) -> None:
        if self.sign() != sign:
            raise ValueError(f"no {sign}")
        self._at += 1

    def value(self) -> Any:
        self.sign()
        while True:
            try:
                found, end = json.JSONDecoder().raw_decode(self._text, self._at)
                if end < len(self._text) or self._whole:  # else a number may go on
                    self._at = end
                    return found
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - 8
                if self._whole or not cut:
                    raise
            self._read()

    def _read(self) -> None:
        """As much again as there is, so that a row costs its length however long it is."""
        left = self._text[self._at :]
        if len(left) > LONGEST_ROW:
            raise ValueError("too long a row")
        data = self._file.read(max(BLOCK, len(left)))
        self._whole = not data
        self._text, self._at = left + self._decoder.decode(data, final=not data), 0
