# SPDX-License-Identifier: Apache-2.0
"""One panel of a sweep's picture: quality against parameters, or against a speed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunec.validators.labels import Label, Labelled, Line
from prunec.validators.measurements import Estimate
from prunec.validators.results import Report
from prunec.validators.sweep import SweepPoint, SweepResult
from prunec.validators.sweep_axes import PARAMETERS, Axis
from prunec.validators.themes import Theme
from prunec.validators.units import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOGARITHMIC = 6.0  # times from the best to the worst, from which on the axis is
_LABELLED = 24  # points, beyond which only those on the front are named
_MARGIN = 0.12  # of what the points span, on either side


@dataclass(frozen=True)
class Sign:
    """How points of a verdict are drawn: marker, whether it is filled, what it says."""

    marker: str
    filled: bool
    said: str


SIGNS = {
    "passed": Sign("o", True, "passes its gates"),
    "inconclusive": Sign("D", False, "inconclusive"),
    "failed": Sign("s", False, "fails"),
    "measured": Sign("o", False, "not judged"),
}


def draw_panel(panel: Axes, result: SweepResult, axis: Axis, theme: Theme) -> Labelled:
    """Everything but the labels, which are given back to be placed when the layout is settled."""
    quality = result.quality
    assert quality is not None  # there is a front
    points = _placed(result.points, axis, quality)
    reports = [report for _, report in points]
    places = {point.label: (axis.value(report), quality.value(report)) for point, report in points}
    line = [places[point.label] for point in result.front(axis)]
    dense = _scale(panel, reports, axis, quality)
    panel.plot(*zip(*line, strict=True), color=theme.blue, linewidth=1.2, zorder=2)
    for point, report in points:
        _draw_point(panel, axis.of(report), quality.of(report), SIGNS[point.verdict], theme)
    labels = _labels(points, places, axis, result, theme)
    if result.best and (ringed := places.get(result.best.label)):
        panel.plot(*ringed, "o", markersize=11, markerfacecolor="none", color=theme.blue, zorder=3)
    drawn = list(places.values())
    if dense is not None:
        panel.plot(*dense, "+", color=theme.quiet, markersize=7, zorder=2)
        labels.append(Label("dense", *dense, theme.quiet, rank=1))
        drawn.append(dense)
    _draw_limit(panel, reports, quality, theme)
    panel.set_xlabel(axis.title if axis is PARAMETERS else f"{axis.title}, pruned ÷ dense")
    panel.set_ylabel(quality.title.replace(", ", ",\n"))
    bars = [bar for report in reports for bar in _bars(axis.of(report), quality.of(report))]
    return Labelled(panel, labels, drawn, [line, *bars])


def say(axis: Axis, value: float) -> str:
    """A value as its axis has it."""
    return count(round(value)) if axis is PARAMETERS else f"{value:.3g}"


def _placed(
    points: Sequence[SweepPoint], axis: Axis, quality: Axis
) -> list[tuple[SweepPoint, Report]]:
    """Those that have a place in the panel."""
    return [
        (point, point.report)
        for point in points
        if point.report
        and math.isfinite(axis.value(point.report))
        and math.isfinite(quality.value(point.report))
    ]


def _labels(
    points: Sequence[tuple[SweepPoint, Report]],
    places: dict[str, tuple[float, float]],
    axis: Axis,
    result: SweepResult,
    theme: Theme,
) -> list[Label]:
    """The panel of parameters names every point, the smaller ones those on their front."""
    front = result.front(axis)
    every = axis is PARAMETERS and len(points) <= _LABELLED
    labels = []
    for point, _ in points:
        if not (every or point in front or point is result.best):
            continue
        text = point.name
        place = places[point.label]
        if point is result.best:
            text = f"{text}: the best that passes" if axis is PARAMETERS else text
            labels.append(Label(text, *place, theme.blue, rank=0))
        else:
            labels.append(Label(text, *place, theme.ink, rank=2 if point in front else 3))
    return labels


def _draw_point(panel: Axes, across: Estimate, up: Estimate, sign: Sign, theme: Theme) -> None:
    colour = theme.blue if sign.filled else theme.ink
    for bar in _bars(across, up):
        panel.plot(*zip(*bar, strict=True), color=colour, linewidth=0.9, zorder=3)
    panel.plot(
        [across.value],
        [up.value],
        sign.marker,
        color=colour,
        markerfacecolor=colour if sign.filled else theme.paper,
        markersize=5.5,
        markeredgewidth=1.1,
        zorder=4,
    )


def _draw_limit(panel: Axes, reports: Sequence[Report], quality: Axis, theme: Theme) -> None:
    """The gate on quality, where it is the same one for all points and lies among them."""
    limits = {
        next((gate.threshold for gate in report.gates if gate.name == quality.gate), None)
        for report in reports
    }
    limit = limits.pop() if len(limits) == 1 else None
    low, high = panel.get_ylim()
    if limit is None or not low < limit < high:
        return
    panel.axhline(limit, color=theme.quiet, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)
    panel.annotate(
        f"gate: {limit:g}",
        (1, limit),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 2.5),
        textcoords="offset points",
        ha="right",
        color=theme.quiet,
    )


def _scale(
    panel: Axes, reports: Sequence[Report], axis: Axis, quality: Axis
) -> tuple[float, float] | None:
    """Limits that hold all points with their intervals.

    The dense model's place is given back if it is one and they hold it too, as they do where it is
    no farther from the points than these are from each other.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    across = [end for report in reports for end in _ends(axis.of(report))]
    up = [end for report in reports for end in _ends(quality.of(report))]
    logarithmic = min(up) > 0 and max(up) > _LOGARITHMIC * min(up)
    places = {(axis.dense(report), quality.dense(report)) for report in reports}
    dense = places.pop() if len(places) == 1 else None
    if dense and not (dense[1] > 0 if logarithmic else _near(up, dense[1])):
        dense = None
    if dense and _near(across, dense[0]):
        across.append(dense[0])
        up.append(dense[1])
    else:
        dense = None
    panel.set_xlim(*_widened(across))
    if logarithmic:
        panel.set_yscale("log")
        low, high = _widened([math.log(end) for end in up])
        panel.set_ylim(math.exp(low), math.exp(high))
        panel.yaxis.set_minor_formatter(NullFormatter())
    else:
        panel.set_ylim(*_widened(up))
        panel.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: say(axis, value)))
    return dense


def _bars(across: Estimate, up: Estimate) -> list[Line]:
    """Both intervals of a point, as far as they are known."""
    bars: list[Line] = []
    if math.isfinite(across.low) and math.isfinite(across.high):
        bars.append([(across.low, up.value), (across.high, up.value)])
    if math.isfinite(up.low) and math.isfinite(up.high):
        bars.append([(across.value, up.low), (across.value, up.high)])
    return bars


def _ends(found: Estimate) -> list[float]:
    return [end for end in (found.value, found.low, found.high) if math.isfinite(end)]


def _near(ends: Sequence[float], value: float) -> bool:
    low, high = min(ends), max(ends)
    return 2 * low - high <= value <= 2 * high - low


def _widened(ends: Sequence[float]) -> tuple[float, float]:
    low, high = min(ends), max(ends)
    room = _MARGIN * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room
