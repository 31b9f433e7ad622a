# SPDX-License-Identifier: Apache-2.0
"""The plot of `search.py`: divergence on the search text against token-forwards spent."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from search_results import Result, by_contestant, targets

#: Okabe and Ito's, told apart by every kind of colour vision.
_HUES = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#595959")
_DASHES = ("-", "--", ":")

Curve = Sequence[tuple[int, float]]


def value_at(curve: Curve, tokens: int) -> float | None:
    """The best divergence when so many token-forwards were spent; None before the first."""
    reached = [divergence for spent, divergence in curve if spent <= tokens]
    return reached[-1] if reached else None


def median_curve(curves: Sequence[Curve]) -> list[tuple[int, float]]:
    """The median at every point of any curve, from where all have begun to where the last ends."""
    found = []
    for tokens in sorted({spent for curve in curves for spent, _ in curve}):
        values = [value_at(curve, tokens) for curve in curves]
        known = [value for value in values if value is not None]
        if len(known) == len(curves):
            found.append((tokens, statistics.median(known)))
    return found


def draw(results: Sequence[Result], path: Path) -> None:
    """Write the plot as PNG and SVG: a panel for every target, a row for every model.

    Every round solves its levels anew, so that a curve may step up where one begins.
    """
    import matplotlib

    # A backend without a screen; imported only when something is drawn.
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(one.contestant for one in results))
    models = list(dict.fromkeys(one.model for one in results))
    sparsities = sorted({one.sparsity for one in results})
    figure = Figure(
        figsize=(1.2 + 3.0 * len(sparsities), 1.1 + 2.5 * len(models)), layout="constrained"
    )
    panels = figure.subplots(len(models), len(sparsities), squeeze=False)
    measured, drawn = set(targets(results)), {}
    for row, model in enumerate(models):
        for column, sparsity in enumerate(sparsities):
            panel = panels[row][column]
            if (model, sparsity) not in measured:
                panel.set_axis_off()
                continue
            for name, ones in by_contestant(results, model, sparsity).items():
                place = names.index(name)
                hue = _HUES[place % len(_HUES)]
                dash = _DASHES[place // len(_HUES) % len(_DASHES)]
                curves = [[point for point in one.curve if math.isfinite(point[1])] for one in ones]
                lines = [(curve, 0.6, 0.45) for curve in curves] if len(curves) > 1 else []
                for curve, width, alpha in [*lines, (median_curve(curves), 1.8, 1.0)]:
                    (drawn[name],) = panel.plot(  # at last the median
                        [tokens for tokens, _ in curve],
                        [divergence for _, divergence in curve],
                        drawstyle="steps-post",
                        color=hue,
                        linestyle=dash,
                        linewidth=width,
                        alpha=alpha,
                    )
            panel.set_xscale("log")
            panel.set_title(f"{model}, {100 * sparsity:g} %", loc="left", fontsize=9)
            panel.grid(alpha=0.25, linewidth=0.5)
            panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("token-forwards spent on searching", fontsize=9)
    figure.supylabel("best divergence on search text, nats per position", fontsize=9)
    figure.legend(
        handles=list(drawn.values()),
        labels=list(drawn),
        loc="outside upper left",
        ncols=min(6, len(names)),
        frameon=False,
    )
    for kind in ("png", "svg"):
        figure.savefig(path.with_suffix(f".{kind}"), dpi=160)
