# SPDX-License-Identifier: Apache-2.0
"""What `search.py` has measured: the file it is kept in, and the tables that it makes."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from builds import spread

#: Prunable sparsities that differ by more than this are not compared without saying so.
SAME_SIZE = 0.005


@dataclass(frozen=True)
class Result:
    """One build. Divergences are in nats per position.

    sparsity, measured_sparsity: what was asked for, and what the written model has
    excess_loss: nats per token above the dense model, on the evaluation text
    evaluation_divergence: of what was written, on the evaluation text
    search_divergence: of the last search's winner on the search text, as that search measures it
    seconds, cpu_seconds: of the whole build by the clock, and of all its threads
    curve: (token-forwards of all searches so far, best divergence of the present one)
    """

    model: str
    sparsity: float
    seed: int
    contestant: str
    settings: tuple[str, ...]
    dense_perplexity: float
    perplexity: float
    excess_loss: float
    evaluation_divergence: float
    search_divergence: float
    measured_sparsity: float
    token_forwards: int
    search_token_forwards: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    threads: int
    jobs: int
    curve: tuple[tuple[int, float], ...]
    versions: dict[str, str]


class ResultFile:
    """Results by configuration, in one JSON file that is replaced whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._results = self._read()

    def get(self, key: str) -> Result | None:
        return self._results.get(key)

    def all(self) -> list[Result]:
        return list(self._results.values())

    def add(self, key: str, result: Result) -> None:
        # Read again: another run may have added its own meanwhile.
        self._results = self._read() | {key: result}
        content = {key: asdict(result) for key, result in self._results.items()}
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        partial.replace(self.path)

    def _read(self) -> dict[str, Result]:
        if not self.path.exists():
            return {}
        content = json.loads(self.path.read_text("utf-8"))
        return {key: _result(entry) for key, entry in content.items()}


def _result(entry: dict[str, Any]) -> Result:
    curve = tuple((tokens, divergence) for tokens, divergence in entry["curve"])
    return Result(**{**entry, "settings": tuple(entry["settings"]), "curve": curve})


def costs_table(results: Sequence[Result]) -> str:
    """A row for every contestant at every target: what it reached and what it took."""
    rows = []
    for model, sparsity in targets(results):
        for name, found in by_contestant(results, model, sparsity).items():

            def mean(value: Callable[[Result], float], found: Sequence[Result] = found) -> float:
                return statistics.fmean(map(value, found))

            rows.append(
                [
                    model,
                    f"{sparsity:.1%}",
                    name,
                    spread([one.perplexity / one.dense_perplexity for one in found]),
                    spread([one.excess_loss for one in found], 4),
                    spread([one.evaluation_divergence for one in found], 4),
                    spread([one.search_divergence for one in found], 4),
                    f"{mean(lambda one: one.token_forwards):,.0f}",
                    f"{mean(lambda one: one.search_token_forwards):,.0f}",
                    spread([one.cpu_seconds for one in found], 0),
                    f"{mean(lambda one: one.peak_bytes) / 2**20:,.0f}",
                ]
            )
    return _markdown(
        "model",
        "sparsity",
        "contestant",
        "perplexity ratio",
        "excess loss",
        "divergence, evaluation",
        "divergence, search",
        "token-forwards",
        "of searches",
        "CPU seconds",
        "peak MiB",
        rows=rows,
    )


def pairs_table(results: Sequence[Result], against: str) -> str:
    """Every contestant over the one named `against`, seed by seed."""
    rows = []
    for model, sparsity in targets(results):
        found = by_contestant(results, model, sparsity)
        others = {one.seed: one for one in found.pop(against, [])}
        for name, ones in found.items():
            pairs = [(one, others[one.seed]) for one in ones if one.seed in others]
            if not pairs:
                continue
            wins = sum(one.excess_loss < other.excess_loss for one, other in pairs)
            losses = _ratios(pairs, lambda one: one.excess_loss)
            rows.append(
                [
                    model,
                    f"{sparsity:.1%}",
                    name,
                    ", ".join("–" if ratio is None else f"{ratio:.2f}" for ratio in losses),
                    _median(losses, 2),
                    f"{wins}/{len(pairs)}",
                    _median(_ratios(pairs, lambda one: one.evaluation_divergence), 2),
                    _median(_ratios(pairs, lambda one: one.token_forwards), 3),
                    _median(_ratios(pairs, lambda one: one.search_token_forwards), 3),
                    _median(_ratios(pairs, lambda one: one.cpu_seconds), 3),
                ]
            )
    return _markdown(
        "model",
        "sparsity",
        f"over {against}",
        "excess loss, each seed",
        "median",
        "wins",
        "divergence, evaluation",
        "token-forwards",
        "of searches",
        "CPU seconds",
        rows=rows,
    )


def remarks(results: Sequence[Result]) -> list[str]:
    """What a reader must know before comparing: sizes that differ, times of unlike runs."""
    said, widest = [], 0.0
    for model, sparsity in targets(results):
        found = by_contestant(results, model, sparsity)
        sizes = {
            name: statistics.fmean(one.measured_sparsity for one in ones)
            for name, ones in found.items()
        }
        every = [one.measured_sparsity for ones in found.values() for one in ones]
        widest = max(widest, max(every) - min(every))
        if max(every) - min(every) > SAME_SIZE:
            listed = ", ".join(f"{name} {size:.2%}" for name, size in sizes.items())
            said.append(f"NOT OF EQUAL SIZE: {model} at {sparsity:.1%} has sparsities {listed}.")
    if not said and results:
        said.append(
            f"Physical sparsities at one target agree within {100 * widest:.2f} percentage points."
        )
    ways = sorted({(one.threads, one.jobs) for one in results})
    told = "; ".join(f"{jobs} at a time with {threads} threads each" for threads, jobs in ways)
    if ways:
        said.append(f"Builds ran {told}.")
    if len(ways) > 1:
        said.append("Seconds of builds that ran in different ways do not compare.")
    return said


def targets(results: Iterable[Result]) -> list[tuple[str, float]]:
    """(model, sparsity), models in the order in which they come, sparsities ascending."""
    models = list(dict.fromkeys(one.model for one in results))
    found = {(one.model, one.sparsity) for one in results}
    return sorted(found, key=lambda target: (models.index(target[0]), target[1]))


def by_contestant(
    results: Iterable[Result], model: str, sparsity: float
) -> dict[str, list[Result]]:
    """The results at a target, by contestant in the order in which they come, seeds ascending."""
    found: dict[str, list[Result]] = {}
    for one in results:
        if (one.model, one.sparsity) == (model, sparsity):
            found.setdefault(one.contestant, []).append(one)
    return {name: sorted(ones, key=lambda one: one.seed) for name, ones in found.items()}


def _ratios(
    pairs: Iterable[tuple[Result, Result]], value: Callable[[Result], float]
) -> list[float | None]:
    """None where the other's value is not above zero, so that a ratio would mislead."""
    return [value(one) / value(other) if value(other) > 0 else None for one, other in pairs]


def _median(ratios: Sequence[float | None], digits: int) -> str:
    known = [ratio for ratio in ratios if ratio is not None]
    return f"{statistics.median(known):.{digits}f}" if len(known) == len(ratios) else "–"


def _markdown(*names: str, rows: Iterable[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
