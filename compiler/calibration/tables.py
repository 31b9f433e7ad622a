# SPDX-License-Identifier: Apache-2.0
"""Tables of rows: Parquet files, folders that `save_to_disk` of the datasets library has written,
and data sets of the Hugging Face hub. The libraries that read them are optional."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prunec.compiler.calibration.document import Record, SourceError
from prunec.compiler.calibration.opening import reading
from prunec.compiler.calibration.order import shuffled_numbers
from prunec.compiler.calibration.rows import Choice, RowError, record

#: The notes of a folder that holds several splits.
SPLITS = "dataset_dict.json"

_TOGETHER = 64  # rows that are read together


def _missing(library: str, what: object) -> SourceError:
    return SourceError(f"{what} takes the {library} library", hint="pip install 'prunec[hub]'")


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` of the datasets library has written a folder."""
    return any((folder / name).is_file() for name in ("state.json", SPLITS))


@dataclass(frozen=True)
class ParquetFile:
    """Row groups come in a random order, each from its beginning."""

    path: Path
    name: str
    choice: Choice

    @property
    def size(self) -> int:
        with reading(self.path):
            return self.path.stat().st_size

    def records(self, rng: random.Random | None) -> Iterator[Record]:
        try:
            from pyarrow import ArrowException
            from pyarrow.parquet import ParquetFile as Table
        except ImportError:
            raise _missing("pyarrow", self.path) from None
        try:
            # A row group may be large: its pages are read as they are needed.
            with reading(self.path), Table(self.path, buffer_size=2**20) as table:
                first = [0]
                for group in range(table.num_row_groups):
                    first.append(first[-1] + table.metadata.row_group(group).num_rows)
                columns = _columns(self.choice, table.schema_arrow.names, self.path)
                for group in shuffled_numbers(table.num_row_groups, rng):
                    batches = table.iter_batches(_TOGETHER, row_groups=[group], columns=columns)
                    rows = (row for batch in batches for row in batch.to_pylist())
                    yield from _records(self.choice, self.path, self.name, rows, first[group])
        except ArrowException as error:
            raise SourceError(f"{self.path} cannot be read: {_sentence(error)}") from None


@dataclass(frozen=True)
class SavedDataset:
    """A folder that `Dataset.save_to_disk` has written; any of its rows can be read."""

    path: Path
    name: str
    choice: Choice

    @property
    def size(self) -> int:
        with reading(self.path):
            return sum(file.stat().st_size for file in self.path.glob("*.arrow"))

    def records(self, rng: random.Random | None) -> Iterator[Record]:
        try:
            from datasets import load_from_disk
        except ImportError:
            raise _missing("datasets", self.path) from None
        try:
            table = load_from_disk(str(self.path))
            columns = _columns(self.choice, table.column_names, self.path)
            table = table.select_columns(columns).with_format(None)
        except (OSError, ValueError, KeyError, TypeError) as error:  # as notes are damaged
            raise SourceError(f"{self.path} cannot be read: {_sentence(error)}") from None
        for block in shuffled_numbers(-(-len(table) // _TOGETHER), rng):
            start = block * _TOGETHER
            rows = table[start : start + _TOGETHER]
            columns_of = [rows[name] for name in columns]
            found = (dict(zip(columns, row, strict=True)) for row in zip(*columns_of, strict=True))
            yield from _records(self.choice, self.path, self.name, found, start)

    def check(self) -> None:
        """What its notes show, without the library, which takes a second to import."""
        if (self.path / SPLITS).is_file():
            names = self._notes(SPLITS).get("splits")
            names = (
                [str(self.path / str(name)) for name in names] if isinstance(names, list) else []
            )
            raise SourceError(
                f"{self.path} holds {len(names)} splits of a data set",
                hint=f"name one of them: {', '.join(names)}",
            )
        if find_spec("datasets") is None:
            raise _missing("datasets", self.path)
        if isinstance(there := self._notes("dataset_info.json").get("features"), dict):
            _columns(self.choice, list(there), self.path)

    def _notes(self, name: str) -> Mapping[str, Any]:
        try:
            with reading(self.path / name):
                notes = json.loads((self.path / name).read_text("utf-8"))
        except (ValueError, RecursionError):
            notes = None
        if not isinstance(notes, dict):
            raise SourceError(f"{self.path / name} holds no JSON object")
        return notes


@dataclass(frozen=True)
class HubDataset:
    """A data set of the hub, streamed: its shards come in a random order, each from its beginning.
    Rows are named by their shard and their number in it."""

    dataset: str
    config: str | None
    split: str
    revision: str | None
    choice: Choice
    size: int = 0  # unknown: it stands alone

    def records(self, rng: random.Random | None) -> Iterator[Record]:
        where = f"data set {self.dataset}"
        try:
            from datasets import load_dataset
        except ImportError:
            raise _missing("datasets", where) from None
        try:
            rows = load_dataset(
                self.dataset, self.config, split=self.split, revision=self.revision, streaming=True
            )
            shards = rows.num_shards
            for shard in shuffled_numbers(shards, rng):
                part = rows.shard(num_shards=shards, index=shard)
                yield from _records(self.choice, where, str(shard), iter(part), 0)
        except (OSError, ValueError) as error:
            # What the library raises for an unknown name, a missing split and an absent network.
            raise SourceError(f"{where} cannot be read: {_sentence(error)}") from None


def _columns(choice: Choice, there: list[str], path: Path) -> list[str]:
    try:
        return choice.columns(there)
    except RowError as error:
        raise error.at(path) from None


def _records(
    choice: Choice, where: Path | str, name: str, rows: Iterator[Any], first: int
) -> Iterator[Record]:
    for number, row in enumerate(rows, first):
        try:
            found = record(choice, f"{name}@{number}", row)
        except RowError as error:
            raise error.at(f"{where}, row {number}") from None
        yield found


def _sentence(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
