# SPDX-License-Identifier: Apache-2.0
"""The points of a sweep: how good they are against how small, and against how fast."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from prunec.validators.labels import place_labels
from prunec.validators.panel_of_front import SIGNS, draw_panel, say
from prunec.validators.sweep import SweepResult
from prunec.validators.sweep_axes import PARAMETERS
from prunec.validators.themes import LIGHT, Theme

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 6.8, 3.4  # inches
_SPEED_HEIGHT = 2.6  # inches
_SIDE_BY_SIDE = 5.0  # inches, from which on two panels stand beside each other


def has_front(result: SweepResult) -> bool:
    """Whether any point has a place in the picture."""
    return bool(result.front())


def describe_front(result: SweepResult) -> str:
    """The gist of the picture in words, for those who do not see it."""
    quality = result.quality
    assert quality is not None  # there is a front
    said = []
    for axis in result.axes:
        points = "; ".join(
            f"{point.name} at {say(axis, axis.value(point.report))} with "
            f"{quality.value(point.report):.3f}"
            for point in result.front(axis)
            if point.report
        )
        if points:
            said.append(f"Pareto front of {quality.title} against {axis.title}: {points}.")
    return " ".join([*said, result.sentence])


def draw_front(result: SweepResult, theme: Theme = LIGHT, width: float | None = None) -> Figure:
    """A panel for parameters, and one for every measured speed.

    Filled points pass their gates, the line joins the front; intervals are those of the reports.
    """
    from matplotlib.figure import Figure

    width = width or _WIDTH
    speeds = [axis for axis in result.axes[1:] if result.front(axis)]
    columns = 2 if width >= _SIDE_BY_SIDE and len(speeds) > 1 else 1
    rows = math.ceil(len(speeds) / columns)
    heights = [_HEIGHT, *[_SPEED_HEIGHT] * rows]
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(1 + rows, columns, height_ratios=heights)
    labelled = [draw_panel(figure.add_subplot(grid[0, :]), result, PARAMETERS, theme)]
    for place, axis in enumerate(speeds):
        panel = figure.add_subplot(grid[1 + place // columns, place % columns])
        labelled.append(draw_panel(panel, result, axis, theme))
    _explain(figure, result, theme)
    place_labels(figure, labelled)
    return figure


def _explain(figure: Figure, result: SweepResult, theme: Theme) -> None:
    """The signs that occur, and what the labels are values of."""
    from matplotlib.lines import Line2D

    met = {point.verdict for point in result.points}
    handles = []
    for word, sign in SIGNS.items():
        if word in met:
            colour = theme.blue if sign.filled else theme.ink
            made = Line2D([], [], linestyle="none", marker=sign.marker, color=colour)
            made.set(markersize=5.5, markerfacecolor=colour if sign.filled else theme.paper)
            made.set_label(sign.said)
            handles.append(made)
    handles.append(Line2D([], [], color=theme.blue, linewidth=1.2, label="Pareto front"))
    wide = figure.get_figwidth() >= _SIDE_BY_SIDE
    figure.legend(
        handles=handles,
        title=f"labels: {', '.join(result.keys)}" if result.keys else None,
        alignment="left",
        loc="outside upper left",
        ncols=len(handles) if wide else 2,
        frameon=False,
    )
