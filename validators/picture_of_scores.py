# SPDX-License-Identifier: Apache-2.0
"""What was measured of both models, as bars with intervals: texts, tasks and speed."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunec.validators.measurements import Estimate, PerplexityResult, SpeedResult, TaskResult
from prunec.validators.themes import LIGHT, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

WIDE = 6.8  # inches
_SIDE_BY_SIDE = 5.0  # inches, from which on two panels stand beside each other
_ROW = 0.3  # inches
_MARGINS = 0.85
_LOGARITHMIC = 8.0  # ratios from which on, or below whose inverse, the axis is
_LONGEST = 22  # characters of a line of a name, of which there are two at most


@dataclass(frozen=True)
class Bar:
    """A bar from the baseline to `value`, and a whisker from `low` to `high`; NaN is none."""

    label: str
    value: float
    low: float
    high: float

    @classmethod
    def of(cls, label: str, found: Estimate) -> Bar:
        return cls(label, found.value, found.low, found.high)

    @property
    def measured(self) -> bool:
        return math.isfinite(self.value)


def texts_of(
    home: PerplexityResult | None, elsewhere: Mapping[str, PerplexityResult]
) -> list[tuple[str, PerplexityResult]]:
    """Every text with its name, that of `validate.perplexity` first."""
    return [*([(home.source, home)] if home else ()), *elsewhere.items()]


def draw_texts(
    texts: Sequence[tuple[str, PerplexityResult]], theme: Theme = LIGHT, width: float | None = None
) -> Figure:
    """Perplexity ratio and divergence of every text, whiskers for their intervals."""
    width = width or WIDE
    beside = width >= _SIDE_BY_SIDE
    height = _MARGINS + _ROW * len(texts)
    figure = _figure(width, height if beside else 2 * height)
    shape = (1, 2) if beside else (2, 1)
    ratios, divergences = figure.subplots(*shape, sharey=beside).flat
    _draw_bars(ratios, [Bar.of(name, found.ratio) for name, found in texts], 1.0, theme)
    ratios.set_title("perplexity, pruned ÷ dense")
    _draw_bars(divergences, [Bar.of(name, found.divergence) for name, found in texts], 0.0, theme)
    divergences.set_title("divergence, nats per token")
    return figure


def describe_texts(texts: Sequence[tuple[str, PerplexityResult]]) -> str:
    """The gist of the picture in words, for those who do not see it."""
    said = [
        f"{name} {_said(found.ratio)} and {_said(found.divergence)} nats" for name, found in texts
    ]
    return "Perplexity ratio and divergence from the dense model: " + "; ".join(said) + "."


def draw_tasks(
    tasks: Sequence[TaskResult], theme: Theme = LIGHT, width: float | None = None
) -> Figure:
    """Both models' scores in every task, and what giving one answer always would score.

    The whisker is the interval of the paired difference, laid around the pruned model's score.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    figure = _figure(width, _MARGINS + 0.1 + 1.5 * _ROW * len(tasks))
    panel = figure.subplots()
    half = 0.38
    for place, task in enumerate(tasks):
        if not (math.isfinite(task.dense) and math.isfinite(task.pruned)):
            _say_absent(panel, place, 0.0, theme)
            continue
        panel.barh(place - half / 2, task.dense, half, color=theme.axis)
        panel.barh(place + half / 2, task.pruned, half, color=theme.blue)
        low, high = task.dense + task.difference.low, task.dense + task.difference.high
        _whisker(panel, place + half / 2, task.pruned, low, high, theme)
        _say(panel, place - half / 2, f"{task.dense:.3f}", task.dense)
        end = max(task.pruned, high) if math.isfinite(high) else task.pruned
        _say(panel, place + half / 2, f"{task.pruned:.3f}", end)
        if task.floor is not None and math.isfinite(task.floor):
            line = ([task.floor] * 2, [place - 1.3 * half, place + 1.3 * half])
            panel.plot(*line, color=theme.ink, linewidth=1.0, linestyle=(0, (2, 1.5)), zorder=4)
    _name_rows(panel, [_task_name(task, tasks) for task in tasks])
    panel.set_xlim(left=0.0)
    panel.margins(x=0.12)
    panel.set_xlabel("score")
    signs: list[Patch | Line2D] = [
        Patch(color=theme.axis, label="dense"),
        Patch(color=theme.blue, label="pruned, with the difference's interval"),
    ]
    if any(task.floor is not None for task in tasks):
        dashes = (0, (2, 1.5))
        signs.append(Line2D([], [], color=theme.ink, lw=1.0, ls=dashes, label="one answer always"))
    figure.legend(
        handles=signs,
        loc="outside upper left",
        ncols=len(signs) if figure.get_figwidth() > _SIDE_BY_SIDE else 1,
        frameon=False,
    )
    return figure


def describe_tasks(tasks: Sequence[TaskResult]) -> str:
    """The gist of the picture in words, for those who do not see it."""
    said = []
    for task in tasks:
        name = _task_name(task, tasks)
        if not (math.isfinite(task.dense) and math.isfinite(task.pruned)):
            said.append(f"{name} was not measured")
            continue
        floor = "" if task.floor is None else f", one answer always {task.floor:.3f}"
        said.append(f"{name} dense {task.dense:.3f}, pruned {task.pruned:.3f}{floor}")
    return "Scores in tasks: " + "; ".join(said) + "."


def draw_speeds(
    speeds: Sequence[SpeedResult], theme: Theme = LIGHT, width: float | None = None
) -> Figure:
    """How many times as fast the pruned model is, in every runtime, phase and batch."""
    figure = _figure(width, _MARGINS + _ROW * len(speeds))
    panel = figure.subplots()
    _draw_bars(panel, [Bar.of(_speed_name(found), found.speedup) for found in speeds], 1.0, theme)
    panel.set_title("tokens/s, pruned ÷ dense")
    return figure


def describe_speeds(speeds: Sequence[SpeedResult]) -> str:
    """The gist of the picture in words, for those who do not see it."""
    said = [f"{_speed_name(found)} {_said(found.speedup)}" for found in speeds]
    return "Tokens per second, pruned ÷ dense: " + "; ".join(said) + "."


def _figure(width: float | None, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width or WIDE, height), layout="constrained")


def _draw_bars(panel: Axes, bars: Sequence[Bar], start: float, theme: Theme) -> None:
    """Bars that begin at `start`, what the dense model has: 1 of a ratio, 0 of a distance."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    ends = [end for bar in bars for end in (bar.value, bar.low, bar.high) if math.isfinite(end)]
    extreme = max((max(end, 1 / end) for end in ends if end > 0), default=1.0)
    if start and extreme > _LOGARITHMIC:
        panel.set_xscale("log")
        panel.xaxis.set_minor_formatter(NullFormatter())
    for place, bar in enumerate(bars):
        if not bar.measured:
            _say_absent(panel, place, start, theme)
            continue
        panel.barh(place, bar.value - start, 0.56, left=start, color=theme.blue)
        _whisker(panel, place, bar.value, bar.low, bar.high, theme)
        farthest = max(end for end in (start, bar.value, bar.high) if math.isfinite(end))
        _say(panel, place, f"{bar.value:.3f}", farthest)
    panel.axvline(start, color=theme.ink, linewidth=0.8)
    panel.spines["left"].set_visible(False)
    _name_rows(panel, [bar.label for bar in bars])
    panel.margins(x=0.16)
    if not start:
        panel.set_xlim(left=min(0.0, *ends) if len(ends) else 0.0)
    if panel.get_xscale() == "linear":
        panel.xaxis.set_major_locator(MaxNLocator(5))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _whisker(
    panel: Axes, place: float, value: float, low: float, high: float, theme: Theme
) -> None:
    from matplotlib.patheffects import withStroke

    if not (math.isfinite(low) and math.isfinite(high)):
        return
    # An edge of paper, so that it is seen on its bar as well as beside it.
    edge = [withStroke(linewidth=2.6, foreground=theme.paper)]
    [line] = panel.plot([low, high], [place, place], "|-", color=theme.ink, markersize=5.5)
    line.set(linewidth=1.0, path_effects=edge, zorder=5)
    panel.plot([value], [place], "o", color=theme.ink, markersize=2.8, zorder=6)


def _say(panel: Axes, place: float, text: str, end: float) -> None:
    """A number behind the end of its bar."""
    _beside(panel, place, text, end).set_fontsize(7.5)


def _say_absent(panel: Axes, place: float, start: float, theme: Theme) -> None:
    _beside(panel, place, "not measured", start).set_color(theme.quiet)


def _beside(panel: Axes, place: float, text: str, end: float) -> Annotation:
    return panel.annotate(
        text, (end, place), xytext=(5, 0), textcoords="offset points", va="center"
    )


def _name_rows(panel: Axes, names: Sequence[str]) -> None:
    panel.set_yticks(range(len(names)), [_short(name) for name in names])
    panel.set_ylim(len(names) - 0.4, -0.6)  # the first on top
    panel.tick_params(axis="y", length=0, labelcolor=panel.xaxis.label.get_color())


def _short(name: str) -> str:
    lines = textwrap.wrap(name, _LONGEST, max_lines=2, placeholder="…")
    return "\n".join(lines)


def _task_name(task: TaskResult, tasks: Sequence[TaskResult]) -> str:
    """The task, and the backend where there are several."""
    several = len({other.backend for other in tasks}) > 1
    return f"{task.task} ({task.backend})" if several else task.task


def _speed_name(found: SpeedResult) -> str:
    return f"{found.runtime} {found.phase}, batch {found.batch}"


def _said(found: Estimate) -> str:
    if not math.isfinite(found.value):
        return "not measured"
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        return f"{found.value:.3f}"
    return f"{found.value:.3f} ({found.low:.3f} … {found.high:.3f})"
