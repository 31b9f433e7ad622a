# SPDX-License-Identifier: Apache-2.0
"""Is Bayesian optimisation worth it? TPE against random settings at equal trials.

    python benchmarks/tuning.py --sparsity 0.2 0.5 --seeds 0 1 2 --threads 1 --best obs

Tunes over calibration on code and prose and over the metrics, by both samplers, with and without
refit, as AdaPruner was published, and around `uniform` and `tyr`. `--best` names the metric that
`importance.py` found best by itself. Prints the loss above the dense model's on code and on
prose, what the trials themselves reached, and draws best-so-far curves.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib
from contest import Contestant, Result, parser_of, run, table
from texts import listed, prose

matplotlib.use("agg")
from matplotlib import pyplot as plt


def contestants(trials: int, best: str) -> dict[str, Contestant]:
    fitting, _ = prose()
    parts = (
        "{code: {source: {kind: python_stdlib}, weight: 1}, "
        f"prose: {{source: {listed(fitting)}, weight: WEIGHT}}}}"
    )

    def mixed(weight: float) -> str:
        return f"calibration.source={{kind: mix, parts: {parts.replace('WEIGHT', str(weight))}}}"

    found = {}
    for inner, extra in (
        ("importance", ""),
        ("importance", ", refit: false"),
        ("uniform", ""),
        ("importance", ", faithful: true"),
    ):
        kind = inner + extra.replace(", ", " ").replace(": ", "=")
        for sampler in ("tpe", "random"):
            method = (
                f"{{kind: adapruner, inner: {inner}, sampler: {sampler}, trials: {trials}{extra}}}"
            )
            settings = (f"method={method}", mixed(1), "search={tokens: 16384}")
            found[f"{kind}, {sampler}"] = Contestant(settings, searches=True)
    for refit in ("true", "false"):
        alone = f"method={{kind: importance, metrics: {{{best}: 1}}, refit: {refit}}}"
        name = best if refit == "true" else f"{best}, no refit"
        found[f"{name}, half prose"] = Contestant((alone, mixed(1), "search=null"))
    found["uniform, half prose"] = Contestant(("method={kind: uniform}", mixed(1), "search=null"))
    return found


def kept(report: dict[str, Any]) -> dict[str, Any]:
    """Of a report, the trials' values in their order, and what was chosen."""
    tuning = report["tuning"]
    if tuning is None:
        return {}
    trials = tuning["trials"]
    return {
        "values": [trial["value"] for trial in trials],
        "states": [trial["state"] for trial in trials],
        "seconds": [trial["seconds"] for trial in trials],
        "chosen": trials[tuning["best"]]["settings"],
        "importances": tuning["importances"],
        "collected": tuning["collected"],
    }


def best_so_far(result: Result) -> list[float]:
    """After every trial, the lowest value of those that were finished."""
    best, curve = float("inf"), []
    for value, state in zip(result.details["values"], result.details["states"], strict=True):
        if state == "complete" and value is not None:
            best = min(best, value)
        curve.append(best)
    return curve


def draw(results: list[Result], path: Path) -> None:
    """Median best-so-far over seeds, one panel a sparsity."""
    tuned = [result for result in results if result.details]
    sparsities = list(dict.fromkeys(result.sparsity for result in tuned))
    if not tuned:
        return
    figure, panels = plt.subplots(
        1, len(sparsities), figsize=(5 * len(sparsities), 4), squeeze=False
    )
    for panel, sparsity in zip(panels[0], sparsities, strict=True):
        for name in dict.fromkeys(result.contestant for result in tuned):
            curves = [
                best_so_far(r) for r in tuned if r.contestant == name and r.sparsity == sparsity
            ]
            if curves:
                median = [statistics.median(at) for at in zip(*curves, strict=False)]
                style = "-" if name.endswith("tpe") else "--"
                panel.plot(range(1, len(median) + 1), median, style, label=name)
        panel.set(title=f"{sparsity:.0%} removed", xlabel="trials", ylabel="best, held-out text")
    panels[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = parser_of(__doc__, "tuning", (0.2, 0.5))
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--best", default="obs", help="the best single metric")
    arguments = parser.parse_args()
    results = run(arguments, contestants(arguments.trials, arguments.best), kept)
    draw(results, arguments.work / "tuning.png")
    print(table(results))


if __name__ == "__main__":
    main()
