# SPDX-License-Identifier: Apache-2.0
"""Artefacts side by side: what is known of each, and where that cannot be compared."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunec.validators.artefact import Weights, inspect, read_weights
from prunec.validators.blocks import Column, Section, Table, table
from prunec.validators.comparison_rows import Cell, Row, Side, rows_of
from prunec.validators.comparison_warnings import warnings_of
from prunec.validators.errors import ValidationError
from prunec.validators.manifest import MANIFEST
from prunec.validators.results import Report, finite
from prunec.validators.saved import read_report
from prunec.validators.tables import plain, render_section

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA_VERSION = 1

_REPORT = Path("report") / "report.json"
_CHECKPOINTS = ("hf", "vllm")


@dataclass(frozen=True)
class Comparison:
    """What is known of several artefacts: a row a number, a column an artefact.

    warnings: a sentence for everything that makes numbers of a row no comparison
    """

    sides: tuple[Side, ...]
    rows: tuple[Row, ...]
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, finite numbers or null, as `prunec compare --json` prints it."""

        def as_number(cell: Cell) -> dict[str, Any] | None:
            if cell.value is None:
                return None
            keys = ("value", "low", "high", "level")
            return {key: getattr(cell, key) for key in keys}

        content = {
            "schema_version": SCHEMA_VERSION,
            "artefacts": [
                {"folder": str(side.folder), "name": side.name, "kind": side.kind}
                for side in self.sides
            ],
            "rows": [
                {
                    "key": row.key,
                    "title": row.title,
                    "values": [as_number(cell) for cell in row.cells],
                }
                for row in self.rows
            ],
            "warnings": list(self.warnings),
        }
        made: dict[str, Any] = finite(content)
        return made


def compare(folders: Sequence[Path]) -> Comparison:
    """Builds, results of `prunec validate` and other checkpoints beside each other.

    Reads reports and headers, no weights. ValidationError for a folder that is none of the three.
    """
    sides = tuple(
        _side(folder, name) for folder, name in zip(folders, _names(folders), strict=True)
    )
    warnings = [warning for side in sides for warning in side.problems]
    return Comparison(sides, tuple(rows_of(sides)), (*warnings, *warnings_of(sides)))


def render_comparison(comparison: Comparison, console: Console) -> None:
    """The table, then what keeps its numbers from being compared."""
    made = comparison_table(comparison)
    render_section(Section(made.caption, (made,)), console)
    for warning in comparison.warnings:
        console.print(plain("warning", "bold yellow"), plain(warning), soft_wrap=True)


def comparison_table(comparison: Comparison) -> Table:
    """A row a number, a column an artefact."""
    columns = (Column(""), *(Column(side.name, "number") for side in comparison.sides))
    rows = [(row.title, *(cell.text for cell in row.cells)) for row in comparison.rows]
    return table("Side by side, with intervals", columns, rows)


def _side(folder: Path, name: str) -> Side:
    if (folder / _REPORT).is_file():
        report = read_report(folder / _REPORT)
        weights, problems = _weights_of(folder, report, name)
        kind = "validated" if report.method == "given" else "build"
        if not (folder / MANIFEST).is_file():
            problems.insert(0, f"{name} has no {MANIFEST}: its last build did not finish")
        return Side(folder, name, kind, report, weights, tuple(problems))
    if not folder.exists():
        raise ValidationError(f"{folder} does not exist", _near(folder))
    if (folder / "sweep.json").is_file():
        raise ValidationError(
            f"{folder} is a sweep, and a column is one model", f"compare its points: {folder}/*"
        )
    artefact = inspect(folder)
    problems = [f"{name}: {problem}" for problem in artefact.problems]
    if artefact.weights is None and artefact.kind != "build":
        raise ValidationError(f"{folder} holds no weights that can be read")
    return Side(folder, name, artefact.kind, None, artefact.weights, tuple(problems))


def _weights_of(folder: Path, report: Report, name: str) -> tuple[Weights | None, list[str]]:
    """The checkpoint that a report is about, from its headers; None if it is not there."""
    for kind in _CHECKPOINTS:
        if kind not in report.artefacts:
            continue
        place = folder / report.artefacts[kind]
        try:
            weights, problems = read_weights(place)
        except ValidationError as error:
            return None, [f"{name}: {error.message}"]
        if weights.parameters != report.pruned.parameters:
            problems.append(
                f"the report says {report.pruned.parameters:,} parameters, {place} holds "
                f"{weights.parameters:,}: it was written again since"
            )
        return weights, [f"{name}: {problem}" for problem in problems]
    return None, []


def _near(folder: Path) -> str | None:
    """A folder of almost the same name, as a hint."""
    try:
        there = [entry.name for entry in folder.parent.iterdir() if entry.is_dir()]
    except OSError:
        return f"there is no folder {folder.parent} either"
    near = difflib.get_close_matches(folder.name, there, n=1)
    return f"did you mean {folder.parent / near[0]}?" if near else None


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the folders apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = [str(Path(*each[-length:])) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]
