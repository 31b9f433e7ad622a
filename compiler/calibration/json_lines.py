# SPDX-License-Identifier: Apache-2.0
"""Files of JSON Lines: a row a line, and any block of lines can be read."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from prunec.compiler.calibration.document import Record, SourceError
from prunec.compiler.calibration.opening import compression, opened, reading
from prunec.compiler.calibration.order import shuffled_numbers
from prunec.compiler.calibration.rows import Choice, RowError, record

#: Bytes that are read in one place; of a row, at most.
BLOCK, LONGEST_ROW = 64 * 2**10, 256 * 2**20

_BOM = "\ufeff"


@dataclass(frozen=True)
class JsonLines:
    """A file with a row a line. Rows are named by the byte they begin at: to count lines, a file
    would have to be read from its beginning."""

    path: Path
    name: str
    choice: Choice

    @property
    def size(self) -> int:
        with reading(self.path):
            return self.path.stat().st_size

    def records(self, rng: random.Random | None) -> Iterator[Record]:
        if compression(self.path):
            yield from self._streamed()
            return
        for number in shuffled_numbers(-(-self.size // BLOCK), rng):
            with reading(self.path), self.path.open("rb") as file:
                lines = self._block(file, number)
            for start, line in lines:
                if (found := self._record(start, line, None)) is not None:
                    yield found

    def _block(self, file: IO[bytes], number: int) -> list[tuple[int, bytes]]:
        """Where lines begin within a block, and these lines, the last one to its end."""
        start = max(0, number * BLOCK - 1)  # with what ends the line before, if it ends there
        file.seek(start)
        data = file.read((number + 1) * BLOCK - start)
        if number:
            before = data.find(b"\n") + 1
            if not before:
                return []
            start, data = start + before, data[before:]
        if data and not data.endswith(b"\n"):
            data += self._limited(file.readline(LONGEST_ROW), start)
        lines = []
        for line in data.split(b"\n"):
            lines.append((start, line))
            start += len(line) + 1
        return lines

    def _streamed(self) -> Iterator[Record]:
        start = 0
        with reading(self.path), opened(self.path) as file:
            number = 0
            while line := self._limited(file.readline(LONGEST_ROW), start):
                number += 1
                if (found := self._record(start, line, number)) is not None:
                    yield found
                start += len(line)

    def _limited(self, line: bytes, start: int) -> bytes:
        if len(line) >= LONGEST_ROW:
            raise SourceError(
                f"{self.path} has a line of more than {LONGEST_ROW >> 20} MiB (byte {start:,})",
                hint="kind: jsonl reads a row a line; kind: text reads plain text",
            )
        return line

    def _record(self, start: int, line: bytes, number: int | None) -> Record | None:
        """None of a blank line."""
        if not line.strip():
            return None
        try:
            return record(self.choice, f"{self.name}@{start}", self._parsed(line))
        except RowError as error:
            raise error.at(f"{self.path}:{number or self._number(start)}") from None

    def _parsed(self, line: bytes) -> Any:
        try:
            return json.loads(line.decode().removeprefix(_BOM))
        except UnicodeDecodeError:
            raise RowError(f"not UTF-8 text, and so no {self.choice.wanted}") from None
        except (ValueError, RecursionError):
            raise RowError(
                f"no {self.choice.wanted}", "a line is a row; kind: text reads plain text"
            ) from None

    def _number(self, start: int) -> int:
        """The number of the line that begins at a byte."""
        number = 1
        with reading(self.path), self.path.open("rb") as file:
            while start and (data := file.read(min(start, 2**20))):
                number += data.count(b"\n")
                start -= len(data)
        return number
