# SPDX-License-Identifier: Apache-2.0
"""How a search went: the best divergence so far against the token-forwards spent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunec.validators.results import SearchPoint, SearchResult
from prunec.validators.themes import LIGHT, Theme
from prunec.validators.units import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_START = "uniform layout"  # where every first round begins

_WIDTH, _HEIGHT = 6.8, 3.2  # inches


def finite_history(search: SearchResult) -> list[SearchPoint]:
    """The points of a search that have a place on a curve."""
    return [point for point in search.history if math.isfinite(point.divergence)]


def describe_search(search: SearchResult) -> str:
    """The gist of the picture in words, for those who do not see it."""
    points = finite_history(search)
    first, last = points[0], points[-1]
    rounds = len({point.round for point in points})
    moved = "falls" if last.divergence < first.divergence else "goes"
    return (
        f"Best divergence from the dense model so far, against token-forwards: it {moved} from "
        f"{first.divergence:.4f} nats per token, the {_START}, to {last.divergence:.4f} "
        f"in {rounds} {'round' if rounds == 1 else 'rounds'} and "
        f"{last.token_forwards:,} token-forwards."
    )


def draw_search(search: SearchResult, theme: Theme = LIGHT, width: float | None = None) -> Figure:
    """A curve for each round: a new round solves the levels anew, and starts where they put it."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    points = finite_history(search)
    width = width or _WIDTH
    figure = Figure(figsize=(width, _HEIGHT), layout="constrained")
    panel = figure.subplots()
    rounds: dict[int, list[SearchPoint]] = {}
    for point in points:
        rounds.setdefault(point.round, []).append(point)
    end = points[-1].token_forwards
    values = [point.divergence for point in points]
    low, high = min(values), max(values)
    spread = (high - low) or 0.1 * abs(high) or 1.0
    panel.set_ylim(low - 0.1 * spread, high + 0.16 * spread)
    panel.set_xlim(0, end)

    room = 72 * (width - 1.5)  # points that the token-forwards are laid out on, about
    _mark_rounds(panel, list(rounds.values()), room / max(end, 1), theme)
    _mark_start(panel, points[0], theme)
    for line in rounds.values():
        panel.plot(
            [point.token_forwards for point in line],
            [point.divergence for point in line],
            drawstyle="steps-post",
            color=theme.blue,
            linewidth=1.6,
            marker="o",
            markersize=3 if len(points) <= 80 else 0,
            clip_on=False,
            zorder=3,
        )
    panel.plot([end], [values[-1]], "o", color=theme.blue, markersize=5.5, clip_on=False, zorder=4)
    panel.annotate(
        f"{values[-1]:.4f}\nfound",
        (end, values[-1]),
        xytext=(7, 0),
        textcoords="offset points",
        va="center",
        annotation_clip=False,
    )
    panel.xaxis.set_major_locator(
        MaxNLocator(7 if width > 5 else 4, steps=[1, 2, 2.5, 5, 10], integer=True)
    )
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    panel.yaxis.set_major_locator(MaxNLocator(6))
    panel.set_xlabel("token-forwards spent")
    panel.set_ylabel("best divergence so far,\nnats per token (dense model: 0)")
    return figure


def _mark_rounds(
    panel: Axes, rounds: Sequence[Sequence[SearchPoint]], scale: float, theme: Theme
) -> None:
    """`scale`: points on paper that a token-forward takes."""
    began = 0
    for place, line in enumerate(rounds):
        ended = line[-1].token_forwards
        if place % 2 == 0 and len(rounds) > 1:
            panel.axvspan(began, ended, color=theme.band, linewidth=0, zorder=0)
        room = scale * (ended - began)
        number = str(line[0].round)
        for text in (f"round {number}", number):
            if 5.2 * len(text) < room:
                panel.annotate(
                    text,
                    ((began + ended) / 2, 1),
                    xycoords=("data", "axes fraction"),
                    xytext=(0, 3),
                    textcoords="offset points",
                    ha="center",
                    color=theme.quiet,
                )
                break
        began = ended


def _mark_start(panel: Axes, first: SearchPoint, theme: Theme) -> None:
    panel.axhline(
        first.divergence, color=theme.quiet, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1
    )
    panel.annotate(
        f"{_START} {first.divergence:.4f}",
        (0.99, first.divergence),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        color=theme.quiet,
    )


def _short(value: float) -> str:
    text = count(round(value))
    number, _, unit = text.partition(" ")
    return f"{float(number):g} {unit}".strip() if unit else text
