# SPDX-License-Identifier: Apache-2.0
"""Is Bayesian optimisation worth it? TPE against random settings at equal trials.

    python benchmarks/tuning.py --sparsity 0.2 0.5 --seeds 0 1 2 --threads 1 --best obs

Tunes over calibration on code and prose, over the metrics and what each layer keeps, by both
samplers, with and without refit, as AdaPruner was published, and around `uniform`. `--best` names
the metric that `importance.py` found best by itself. Prints the loss above the dense model's on
code and on prose, what the trials themselves reached, and draws best-so-far curves.
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
    """Median best-so-far over seeds by both samplers: a row for what is tuned, a column for what is
    removed."""
    tuned: dict[tuple[str, str, float], list[list[float]]] = {}
    for result in results:
        if result.details:
            inner, _, sampler = result.contestant.rpartition(", ")
            curves = tuned.setdefault((inner, sampler, result.sparsity), [])
            curves.append(best_so_far(result))
    rows, samplers, columns = (list(dict.fromkeys(key)) for key in zip(*tuned, strict=True))
    size = 5 * len(columns), 3.2 * len(rows)
    figure, panels = plt.subplots(len(rows), len(columns), figsize=size, squeeze=False)
    for row, inner in zip(panels, rows, strict=True):
        for panel, sparsity in zip(row, columns, strict=True):
            lowest = []
            for sampler in samplers:
                if curves := tuned.get((inner, sampler, sparsity), []):
                    median = [statistics.median(at) for at in zip(*curves, strict=True)]
                    panel.plot(range(1, len(median) + 1), median, label=sampler)
                    lowest.append(median[-1])
            if lowest:  # what the first trials have says nothing of the end
                panel.set_ylim(0.95 * min(lowest), max(1.3 * min(lowest), 1.1 * max(lowest)))
            panel.set(title=f"{inner}, {sparsity:.0%} removed", xlabel="trials")
            panel.set_ylabel("best, held-out text")
            panel.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = parser_of(__doc__, "tuning", (0.2, 0.5))
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--best", default="obs", help="the best single metric")
    arguments = parser.parse_args()
    results = run(arguments, contestants(arguments.trials, arguments.best), kept)
    if any(result.details for result in results):
        draw(results, arguments.work / "tuning.png")
    print(table(results))


if __name__ == "__main__":
    main()
