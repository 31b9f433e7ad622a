# SPDX-License-Identifier: Apache-2.0
"""How a recovery went: the held-out and the training loss against the tokens trained on."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

from prunec.validators.labels import Label, Labelled, place_labels
from prunec.validators.results import RecoveryPoint, RecoveryResult
from prunec.validators.themes import LIGHT, Theme
from prunec.validators.units import count

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 6.8, 3.0  # inches
_LONGEST = 38  # characters of a line beside the axis


def finite_points(recovery: RecoveryResult) -> list[RecoveryPoint]:
    """The points of a recovery that have a place on a curve."""
    return [point for point in recovery.points if math.isfinite(point.held_out)]


def describe_recovery(recovery: RecoveryResult) -> str:
    """The gist of the picture in words, for those who do not see it."""
    points = finite_points(recovery)
    best = min(points, key=lambda point: point.held_out)
    kept = "" if recovery.kept else " It was not kept."
    return (
        f"Loss against tokens of training: the held-out loss is {recovery.before:.4f} before any, "
        f"{best.held_out:.4f} at its lowest, after {best.tokens:,} tokens, and "
        f"{points[-1].held_out:.4f} at the end, after {points[-1].tokens:,}.{kept}"
    )


def draw_recovery(
    recovery: RecoveryResult, theme: Theme = LIGHT, width: float | None = None
) -> Figure:
    """Both losses, and a line where the held-out one was before."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    points = finite_points(recovery)
    width = width or _WIDTH
    figure = Figure(figsize=(width, _HEIGHT), layout="constrained")
    panel = figure.subplots()
    trained = [
        (point.tokens, point.training)
        for point in points
        if point.training is not None and math.isfinite(point.training)
    ]
    small = 2.5 if len(points) <= 80 else 0
    panel.axhline(
        recovery.before,
        color=theme.quiet,
        linewidth=0.8,
        linestyle=(0, (4, 2)),
        label=f"before: {recovery.before:.4f}",
        zorder=1,
    )
    if trained:
        panel.plot(
            *zip(*trained, strict=True),
            "s-",
            color=theme.axis,
            linewidth=1.0,
            markersize=small,
            clip_on=False,
            label="training text",
            zorder=2,
        )
    panel.plot(
        [point.tokens for point in points],
        [point.held_out for point in points],
        "o-",
        color=theme.blue,
        linewidth=1.6,
        markersize=small and 3.5,
        clip_on=False,
        label="held-out text",
        zorder=3,
    )
    best = min(points, key=lambda point: point.held_out)
    panel.plot([best.tokens], [best.held_out], "o", color=theme.blue, ms=6, clip_on=False, zorder=4)
    end = max(point.tokens for point in points) or 1
    panel.set_xlim(0, end)
    panel.margins(y=0.16)
    panel.xaxis.set_major_locator(
        MaxNLocator(7 if width > 5 else 4, steps=[1, 2, 2.5, 5, 10], integer=True)
    )
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tokens(value)))
    panel.yaxis.set_major_locator(MaxNLocator(6))
    panel.set_xlabel("tokens of training")
    panel.set_ylabel(_loss(recovery.loss))
    figure.legend(loc="outside upper left", ncols=3 if width > 5 else 2, frameon=False)
    if best.held_out < recovery.before:
        lowest = Label(f"{best.held_out:.4f}", best.tokens, best.held_out, theme.ink, rank=0)
        curves = [[(point.tokens, point.held_out) for point in points], trained]
        every = [place for curve in curves for place in curve]
        place_labels(figure, [Labelled(panel, [lowest], every, curves)])
    return figure


def _loss(words: str) -> str:
    """What the loss is, as two lines beside the axis: the unit on the second."""
    lines = words.rsplit(", ", 1)
    if max(map(len, lines)) > _LONGEST:
        lines = textwrap.wrap(words, _LONGEST, max_lines=2, placeholder="…")
    return ",\n".join(lines).replace(",,", ",")


def _tokens(value: float) -> str:
    text = count(round(value))
    number, _, unit = text.partition(" ")
    return f"{float(number):g} {unit}".strip() if unit else text
