# SPDX-License-Identifier: Apache-2.0
"""How a tuning went: the value of every trial, the best so far, and which settings mattered."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunec.validators.results import TrialResult, TuningResult
from prunec.validators.themes import LIGHT, Theme
from prunec.validators.tuned_settings import name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_WIDTH, _HEIGHT = 6.8, 3.4  # inches
_SIDE_BY_SIDE = 5.0  # inches, from which on two panels stand beside each other
_BARS = 8  # settings that are shown, the most important ones
_ROW = 0.26  # inches
_LONGEST = 22  # characters of a line of a setting's name, of which there are two at most
_LOGARITHMIC = 4.0  # ratio of the worst to the best value from which on the axis is
_CUT = 3.0  # interquartile ranges above the upper quartile: values beyond stand on the edge,
_FEW = 0.1  # unless they are more than this share of all


@dataclass(frozen=True)
class _Sign:
    """How trials of a state are marked."""

    label: str
    marker: str
    filled: bool = False


_SIGNS = {
    "complete": _Sign("measured in full", "o", filled=True),
    "repeated": _Sign("settings tried before", "o"),
    "pruned": _Sign("stopped early", "x"),
    "failed": _Sign("failed", "v"),
}
_BEYOND = _Sign("far above", "^", filled=True)


def finite_trials(tuning: TuningResult) -> list[TrialResult]:
    """Trials in the order of their numbers whose value has a place on a curve."""
    trials = sorted(tuning.trials, key=lambda trial: trial.number)
    return [trial for trial in trials if _is_known(trial)]


def describe_tuning(tuning: TuningResult) -> str:
    """The gist of the picture in words, for those who do not see it."""
    known = finite_trials(tuning)
    values = [_value(trial) for trial in known]
    text = (
        f"The {tuning.objective} of {len(tuning.trials)} trials: from {min(values):.4f} to "
        f"{max(values):.4f}, the best so far goes from {values[0]:.4f} to {min(values):.4f}."
    )
    left = [
        f"{number} {_SIGNS[state].label}"
        for state in ("pruned", "failed")
        if (number := sum(trial.state == state for trial in tuning.trials))
    ]
    if left:
        text += f" Trials without a value: {', '.join(left)}."
    if ranked := _ranked(tuning)[:3]:
        said = ", ".join(f"{name_of(name)} {share:.0%}" for name, share in ranked)
        text += f" Most important: {said}.".replace("%", " %")
    return text


def draw_tuning(tuning: TuningResult, theme: Theme = LIGHT, width: float | None = None) -> Figure:
    """Trials by their number; beside or below them, the importance of the settings."""
    from matplotlib.figure import Figure

    width = width or _WIDTH
    ranked = _ranked(tuning)[:_BARS]
    beside = width >= _SIDE_BY_SIDE
    below = 0.75 + _ROW * len(ranked) if ranked and not beside else 0.0
    figure = Figure(figsize=(width, _HEIGHT + below), layout="constrained")
    if not ranked:
        panel = figure.subplots()
    elif beside:
        panel, bars = figure.subplots(1, 2, width_ratios=(2.1, 1))
    else:
        panel, bars = figure.subplots(2, 1, height_ratios=(_HEIGHT, below))
    signs = _draw_trials(panel, tuning, theme)
    if ranked:
        _draw_importances(bars, ranked, theme)
    figure.legend(
        handles=signs,
        loc="outside upper left",
        ncols=len(signs) if beside else 2,
        frameon=False,
        handletextpad=0.4,
        columnspacing=1.4,
    )
    return figure


def _draw_trials(panel: Axes, tuning: TuningResult, theme: Theme) -> list[Line2D]:
    """Every trial, and the best so far. What has no value stands on the upper edge, as do values
    far above all others. Returns the legend's signs."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    known = finite_trials(tuning)
    last = max(trial.number for trial in tuning.trials)
    low, high = _limits([_value(trial) for trial in known])
    if low > 0 and high / low > _LOGARITHMIC:
        panel.set_yscale("log")
    panel.set_ylim(low, high)
    panel.set_xlim(-0.6, last + 0.6)
    if 0 < tuning.startup <= last:
        _mark_startup(panel, tuning, theme)

    signs = [
        _draw_marks(panel, trials, sign, high, theme.orange if state == "failed" else theme.axis)
        for state, sign in _SIGNS.items()
        if (trials := [t for t in tuning.trials if t.state == state and not _is_beyond(t, high)])
    ]
    if beyond := [trial for trial in known if _is_beyond(trial, high)]:
        signs.append(_draw_marks(panel, beyond, _BEYOND, high, theme.axis))
    signs.append(_draw_best(panel, known, last, theme))
    panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if panel.get_yscale() == "linear":
        panel.yaxis.set_major_locator(MaxNLocator(6))
    else:
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.set_xlabel("trial")
    unit = "divergence, nats per token" if tuning.objective == "divergence" else tuning.objective
    panel.set_ylabel(f"{unit}\nof held-out text")
    return signs


def _draw_marks(
    panel: Axes, trials: Sequence[TrialResult], sign: _Sign, edge: float, colour: str
) -> Line2D:
    [marks] = panel.plot(
        [trial.number for trial in trials],
        [min(_value(trial), edge) if _is_known(trial) else edge for trial in trials],
        sign.marker,
        color=colour,
        markerfacecolor=colour if sign.filled else "none",
        markersize=4,
        label=sign.label,
        clip_on=False,
        zorder=3,
    )
    return marks


def _draw_best(panel: Axes, known: Sequence[TrialResult], last: int, theme: Theme) -> Line2D:
    """The line of the best so far, and its end in bold."""
    best = [min(_value(trial) for trial in known[: place + 1]) for place in range(len(known))]
    numbers = [trial.number for trial in known]
    [line] = panel.plot(
        [*numbers, last],
        [*best, best[-1]],
        drawstyle="steps-post",
        color=theme.blue,
        linewidth=1.6,
        label="best so far",
        zorder=2,
    )
    first = numbers[best.index(best[-1])]
    panel.plot([first], [best[-1]], "o", color=theme.blue, markersize=6, clip_on=False, zorder=4)
    panel.annotate(
        f"{best[-1]:.4f}, trial {first}",
        (first, best[-1]),
        xytext=(0, -6),
        textcoords="offset points",
        ha=_side(first, last),
        va="top",
        fontweight="bold",
        zorder=5,
    )
    return line


def _side(number: int, last: int) -> str:
    """How a label at a trial is aligned, so that it stays inside the panel."""
    share = number / max(last, 1)
    return "left" if share < 0.25 else "right" if share > 0.75 else "center"


def _mark_startup(panel: Axes, tuning: TuningResult, theme: Theme) -> None:
    panel.axvspan(-0.6, tuning.startup - 0.5, color=theme.band, linewidth=0, zorder=0)
    panel.annotate(
        "start-up",
        (-0.6, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 5),
        textcoords="offset points",
        color=theme.quiet,
    )


def _draw_importances(panel: Axes, ranked: Sequence[tuple[str, float]], theme: Theme) -> None:
    for place, (_, share) in enumerate(ranked):
        panel.barh(place, share, 0.6, color=theme.blue)
        text = f"{share:.0%}".replace("%", " %")
        panel.annotate(
            text,
            (share, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
        )
    panel.set_yticks(range(len(ranked)), [_short(name_of(name)) for name, _ in ranked])
    panel.set_ylim(max(len(ranked), 4) - 0.4, -0.6)  # the first on top
    panel.tick_params(axis="y", length=0, labelcolor=theme.ink)
    panel.set_xlim(0, 1.28 * max(share for _, share in ranked))
    panel.set_xticks([])
    panel.spines[["bottom", "left"]].set_visible(False)
    panel.axvline(0, color=theme.ink, linewidth=0.8)
    panel.set_title("importance")


def _ranked(tuning: TuningResult) -> list[tuple[str, float]]:
    known = [(name, share) for name, share in tuning.importances.items() if share > 0]
    return sorted(known, key=lambda item: -item[1])


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Of the axis: all values, but for those far above, and room for the label below the best."""
    ordered = sorted(values)
    lower, upper = ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4]
    low, high = ordered[0], ordered[-1]
    fence = upper + _CUT * (upper - lower)
    within = [value for value in ordered if value <= fence]
    if upper > lower and len(within) >= (1 - _FEW) * len(ordered):
        high = within[-1]
    if low > 0 and high / low > _LOGARITHMIC:
        return low * (low / high) ** 0.16, high * (high / low) ** 0.06
    spread = (high - low) or 0.1 * abs(high) or 1.0
    return low - 0.16 * spread, high + 0.06 * spread


def _is_known(trial: TrialResult) -> bool:
    full = trial.state in ("complete", "repeated")
    return full and trial.value is not None and math.isfinite(trial.value)


def _is_beyond(trial: TrialResult, edge: float) -> bool:
    return _is_known(trial) and _value(trial) > edge


def _value(trial: TrialResult) -> float:
    assert trial.value is not None  # of known ones only
    return trial.value


def _short(name: str) -> str:
    lines = textwrap.wrap(name, _LONGEST, max_lines=2, placeholder="…")
    return "\n".join(lines)
