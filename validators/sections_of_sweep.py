# SPDX-License-Identifier: Apache-2.0
"""The sections of sweep.md and sweep.html: fronts, points, what failed, how to repeat it."""

from __future__ import annotations

from urllib.parse import quote

from prunec.validators.blocks import Block, Code, Column, Figure, Paragraph, Section, Table, table
from prunec.validators.intervals import ABSENT, bounds, interval_title, measured
from prunec.validators.sweep import SweepPoint, SweepResult
from prunec.validators.units import count, duration, size


def sections_of_sweep(result: SweepResult) -> list[Section]:
    """All that a sweep has anything to say in."""
    found = (_front(result), _points(result), _failures(result), _origin(result))
    return [section for section in found if section is not None]


def points_table(result: SweepResult) -> Table:
    """A row a point, which leads to the point's report."""
    quality = result.quality
    columns = [
        Column(", ".join(result.keys) or "point"),
        Column("verdict", "verdict"),
        Column("parameters", "number"),
        Column("of the dense", "number", detail=True),
        Column("weight files", "number", detail=True),
    ]
    if quality:
        estimates = [quality.of(report) for report in result.reports]
        columns += [Column(quality.title, "number"), Column(interval_title(estimates), "number")]
    columns.append(Column("time of the steps", "number", detail=True))
    rows = [_row(point, result) for point in result.points]
    links = [
        f"{quote(point.folder)}/report/report.html" if point.report else ""
        for point in result.points
    ]
    return table("What was built", columns, rows, links)


def speeds_table(result: SweepResult) -> Table | None:
    """Every measured speedup of every point."""
    axes = result.axes[1:]
    if not axes:
        return None
    columns = (Column("point"), *(Column(axis.brief, "number") for axis in axes))
    rows = []
    for point in result.points:
        if (report := point.report) is not None:
            estimates = [axis.of(report) for axis in axes]
            rows.append((point.name, *(f"{measured(e.value)} ({bounds(e)})" for e in estimates)))
    return table("Tokens per second, pruned ÷ dense, with intervals", columns, rows)


def failures_table(result: SweepResult) -> Table | None:
    """Why points are no candidates: gates that do not hold, and what could not be built."""
    rows = []
    for point in result.points:
        if point.report is None:
            rows.append((point.name, "not built", point.error or "no reason is known"))
            continue
        rows += [
            (point.name, gate.verdict, gate.message)
            for gate in point.report.gates
            if not gate.passed
        ]
    if not rows:
        return None
    columns = (Column("point"), Column("verdict", "verdict"), Column("why"))
    return table("Gates that do not hold, and what could not be built", columns, rows)


def _front(result: SweepResult) -> Section | None:
    if result.quality is None:
        said = "Nothing was measured that says how good the points are."
        return Section("Pareto front", (Paragraph(said),)) if result.reports else None
    blocks: list[Block] = [Figure("front")]
    for axis in result.axes:
        if front := result.front(axis):
            names = "; ".join(point.name for point in front)
            against = f"{result.quality.title} against {axis.title}"
            blocks.append(Paragraph(f"On the front of {against}: {names}."))
    blocks.append(Paragraph("No other point is at least as good in both and better in one."))
    return Section("Pareto front", tuple(blocks))


def _points(result: SweepResult) -> Section:
    speeds = speeds_table(result)
    return Section("Points", (points_table(result), *((speeds,) if speeds else ())))


def _failures(result: SweepResult) -> Section | None:
    found = failures_table(result)
    return Section("What did not pass", (found,)) if found else None


def _origin(result: SweepResult) -> Section:
    blocks: list[Block] = [Code("This sweep is made again by", result.command, "sh")]
    spent = [step for report in result.reports for step in report.cost.steps]
    if spent:
        fresh = [step for step in spent if not step.reused]
        blocks.append(
            Paragraph(
                f"Of {len(spent)} steps of all builds, {len(spent) - len(fresh)} were reused from "
                f"another build; the others took {duration(sum(s.seconds for s in fresh))}."
            )
        )
    if result.reports and (machine := result.reports[0].hardware):
        rows = list(machine.items())
        blocks.append(table("Hardware", (Column(""), Column("value")), rows))
    return Section("Reproduction", tuple(blocks))


def _row(point: SweepPoint, result: SweepResult) -> list[str]:
    quality = result.quality
    if (report := point.report) is None:
        return [point.name, point.verdict, *[ABSENT] * (6 if quality else 4)]
    row = [
        f"{point.name} (best)" if point is result.best else point.name,
        point.verdict,
        count(report.pruned.parameters),
        f"{report.pruned.parameters / report.dense.parameters:.1%}".replace("%", " %"),
        size(report.pruned.bytes),
    ]
    if quality:
        found = quality.of(report)
        row += [measured(found.value), bounds(found)]
    return [*row, duration(report.cost.seconds)]
