# SPDX-License-Identifier: Apache-2.0
"""Two models' scores on tasks against each other, item by item; groups as all their items."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunec.validators.measurements import Estimate, TaskResult
from prunec.validators.score_intervals import difference_of_scores, mean_score, ratio_of_scores
from prunec.validators.task_scores import Pool, TaskScore, TaskScores

_UNIT = "items"


def compare(dense: TaskScores, pruned: TaskScores, backend: str) -> list[TaskResult]:
    """Both models on every task that either was given, in the dense one's order; a group stands
    before the first of its tasks.

    Items are paired by doc_id: one that is hard for both models says nothing of their difference.
    A task that failed for either, or whose items are not the same, becomes a result with `error`,
    and so does a group with such a task.
    """
    pools = {pool.name: pool for pool in (*pruned.pools, *dense.pools)}
    before, after = _by_task(dense, pools), _by_task(pruned, pools)
    pairs = {
        task: _Pair.of(task, before.get(task), after.get(task))
        for task in dict.fromkeys([*before, *after])
    }
    found: dict[str, TaskResult] = {}
    for task, pair in pairs.items():
        for group in pair.groups:
            if group in pools and group not in found:
                pool = pools[group]
                found[group] = _pooled(pool, [pairs[each] for each in pool.tasks], backend)
        found[task] = pair.result(backend)
    return list(found.values())


def _by_task(scores: TaskScores, pools: Mapping[str, Pool]) -> dict[str, TaskScore]:
    """Scores by task. A group that failed as a whole is each of its tasks, as far as these are
    known from the other model."""

    def named() -> Iterator[tuple[str, TaskScore]]:
        for score in scores.scores:
            if score.task in pools:
                pool = pools[score.task]
                for task in pool.tasks:
                    yield task, TaskScore(task, error=score.error, groups=(pool.name,))
        for score in scores.scores:
            if score.task not in pools:
                yield score.task, score

    return dict(named())


@dataclass(frozen=True)
class _Pair:
    """Both models' scores of a task; arrays are of its items [n].

    chance: what guessing scores, None where that is not known
    """

    task: str
    metric: str
    groups: tuple[str, ...]
    error: str | None
    dense: NDArray[np.float64]
    pruned: NDArray[np.float64]
    floor: float | None
    chance: float | None

    @classmethod
    def of(cls, task: str, dense: TaskScore | None, pruned: TaskScore | None) -> _Pair:
        known = dense or pruned
        assert known is not None
        error = _why_not(dense, pruned)
        before, after = (
            np.array([score for _, score in found.items] if found and not error else [])
            for found in (dense, pruned)
        )
        groups = tuple(dict.fromkeys(g for found in (dense, pruned) if found for g in found.groups))
        return cls(task, known.metric, groups, error, before, after, known.floor, known.chance)

    def result(self, backend: str) -> TaskResult:
        if self.error:
            return _failure(self.task, backend, self.metric, self.error, self.groups)
        return _result(self.task, backend, self, None, groups=self.groups)


def _pooled(pool: Pool, pairs: Sequence[_Pair], backend: str) -> TaskResult:
    """The items of all tasks together. The metric must be one and the same."""
    metrics = tuple(dict.fromkeys(pair.metric for pair in pairs))
    if failed := [pair for pair in pairs if pair.error]:
        error = f"{len(failed)} of its {len(pairs)} tasks were not measured, "
        error += f"{failed[0].task}: {failed[0].error}"
        if len(failed) == len(pairs) and len({pair.error for pair in failed}) == 1:
            error = str(failed[0].error)
        return _failure(pool.name, backend, "", error, tasks=pool.tasks)
    if len(metrics) > 1:
        error = f"its tasks have different metrics, {', '.join(metrics)}: choose one in `metric`"
        return _failure(pool.name, backend, "", error, tasks=pool.tasks)
    sizes = [len(pair.dense) for pair in pairs]
    counts = np.array(sizes if pool.by_size else [1] * len(sizes))
    shares = counts / counts.sum()
    together = _Pair(
        pool.name,
        metrics[0],
        (),
        None,
        np.concatenate([pair.dense for pair in pairs]),
        np.concatenate([pair.pruned for pair in pairs]),
        _mean([pair.floor for pair in pairs], shares),
        _mean([pair.chance for pair in pairs], shares),
    )
    weights = None if pool.by_size else np.repeat(1 / np.array(sizes), sizes)
    return _result(pool.name, backend, together, weights, tasks=pool.tasks)


def _mean(values: Sequence[float | None], shares: NDArray[np.float64]) -> float | None:
    known = [value for value in values if value is not None]
    return float(shares @ np.array(known)) if len(known) == len(values) else None


def _result(
    name: str,
    backend: str,
    pair: _Pair,
    weights: NDArray[np.float64] | None,
    *,
    groups: tuple[str, ...] = (),
    tasks: tuple[str, ...] = (),
) -> TaskResult:
    """The figures of a pair; weights [n]: of its items, None where all count alike."""
    before, after, chance = pair.dense, pair.pruned, pair.chance
    score = mean_score(after, _UNIT, weights)
    return TaskResult(
        task=name,
        backend=backend,
        metric=pair.metric,
        items=len(before),
        dense=float(np.average(before, weights=weights)),
        pruned=score.value,
        difference=difference_of_scores(before, after, _UNIT, weights),
        recovery=ratio_of_scores(before, after, _UNIT, weights=weights),
        pruned_estimate=score,
        floor=pair.floor,
        groups=groups,
        tasks=tasks,
        chance=chance,
        recovery_above_chance=None
        if chance is None
        else ratio_of_scores(before, after, _UNIT, chance=chance, weights=weights),
    )


def _failure(
    name: str,
    backend: str,
    metric: str,
    error: str,
    groups: tuple[str, ...] = (),
    tasks: tuple[str, ...] = (),
) -> TaskResult:
    unknown = Estimate.unknown(_UNIT)
    return TaskResult(
        task=name,
        backend=backend,
        metric=metric,
        items=0,
        dense=math.nan,
        pruned=math.nan,
        difference=unknown,
        recovery=unknown,
        pruned_estimate=unknown,
        error=error,
        groups=groups,
        tasks=tasks,
    )


def _why_not(dense: TaskScore | None, pruned: TaskScore | None) -> str | None:
    """What keeps two scores from being compared, if anything does."""
    errors = {
        "dense": dense.error if dense else "was not run",
        "pruned": pruned.error if pruned else "was not run",
    }
    found = {model: error for model, error in errors.items() if error}
    if len(found) == 2 and len(set(found.values())) == 1:
        return errors["dense"]
    if found:
        return "; ".join(f"{model} model: {error}" for model, error in found.items())
    assert dense is not None and pruned is not None
    if not dense.items:
        return "scored no items"
    if dense.metric != pruned.metric:
        return f"the dense model has {dense.metric}, the pruned one {pruned.metric}"
    same = dense.digest == pruned.digest
    if not same or [doc_id for doc_id, _ in dense.items] != [doc_id for doc_id, _ in pruned.items]:
        return "the models were given different items"
    return None
