# SPDX-License-Identifier: Apache-2.0
"""What a report is made of, whatever it is written in: paragraphs, tables, code and pictures.

report.md, report.html and the terminal set the same sections, each in its own way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from prunec.validators.intervals import ABSENT

#: What a column holds. The first column names its row.
ColumnKind = Literal["text", "code", "number", "verdict"]


@dataclass(frozen=True)
class Column:
    """A column of a table. `detail`: a narrow medium may leave it out."""

    title: str
    kind: ColumnKind = "text"
    detail: bool = False


@dataclass(frozen=True)
class Paragraph:
    text: str
    block: ClassVar[str] = "paragraph"


@dataclass(frozen=True)
class Table:
    """Cells are text as it is to be read. `caption` says what the rows are.

    links: where the first cell of each row leads to, relative to the page; empty is nowhere
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    links: tuple[str, ...] = ()
    block: ClassVar[str] = "table"

    def brief(self) -> Table:
        """The table without its details."""
        return self.only([n for n, column in enumerate(self.columns) if not column.detail])

    def only(self, places: Sequence[int]) -> Table:
        """The table with the columns at these places."""
        rows = tuple(tuple(row[place] for place in places) for row in self.rows)
        columns = tuple(self.columns[place] for place in places)
        return Table(self.caption, columns, rows, self.links)


@dataclass(frozen=True)
class Code:
    """Text to be set as it is, line by line. `label` says what it is."""

    label: str
    text: str
    language: str = ""
    block: ClassVar[str] = "code"


@dataclass(frozen=True)
class Figure:
    """The place of a picture, by its name, and what says the same where it is not shown.

    bars: its content as lines of text; table: as numbers, which `summary` announces
    """

    name: str
    bars: str = ""
    table: Table | None = None
    summary: str = "In numbers"
    block: ClassVar[str] = "figure"


@dataclass(frozen=True)
class Completions:
    """What two models make of a prompt."""

    prompt: str
    dense: str
    pruned: str
    block: ClassVar[str] = "completions"


Block = Paragraph | Table | Code | Figure | Completions


@dataclass(frozen=True)
class Section:
    title: str
    blocks: tuple[Block, ...]


def table(
    caption: str,
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    links: Sequence[str] = (),
    *,
    sparse: bool = False,
) -> Table:
    """A table of plain rows. `sparse` leaves out the columns that have nothing in any row."""
    made = Table(caption, tuple(columns), tuple(tuple(row) for row in rows), tuple(links))
    if not sparse:
        return made
    return made.only([place for place in range(len(columns)) if any(row[place] for row in rows)])


def without_constants(made: Table, titles: Sequence[str]) -> tuple[Table, str]:
    """The table without those columns of `titles` that say the same in every row, and a sentence
    that says it once. Rows in which nothing was measured agree with any."""
    constant = {}
    for place, column in enumerate(made.columns):
        found = {row[place] for row in made.rows} - {ABSENT}
        if column.title in titles and len(found) == 1:
            constant[place] = f"{column.title} {found.pop()}"
    kept = made.only([place for place in range(len(made.columns)) if place not in constant])
    said = ", ".join(constant.values())
    return kept, f"In all rows: {said}." if said else ""
