# SPDX-License-Identifier: Apache-2.0
"""What one model scored on tasks, item by item, and two models' scores against each other."""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunec.validators.errors import ValidationError
from prunec.validators.measurements import Estimate, TaskResult
from prunec.validators.score_intervals import difference_of_scores, mean_score, ratio_of_scores

_UNIT = "items"


@dataclass(frozen=True)
class TaskScore:
    """One model on one task.

    metric: its name in lm-eval, `NAME` or, behind a filter of the task's own, `NAME,FILTER`
    value: what lm-eval reports, which is the mean of `items`; NaN where there is an error
    items: (doc_id, score) in order of doc_id
    floor: the score of the best constant answer, None where there are no choices
    digest: of the items' contents, so that scores of other items are not compared
    error: why there is no score
    groups: groups and tags that were asked for and brought the task
    """

    task: str
    metric: str = ""
    value: float = math.nan
    items: tuple[tuple[int, float], ...] = ()
    floor: float | None = None
    digest: str = ""
    error: str | None = None
    groups: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; a value that is not finite is null."""
        return {
            "task": self.task,
            "metric": self.metric,
            "value": self.value if math.isfinite(self.value) else None,
            "items": [list(item) for item in self.items],
            "floor": self.floor,
            "digest": self.digest,
            "error": self.error,
            "groups": list(self.groups),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> TaskScore:
        """What `as_dict` made."""
        value = content["value"]
        return cls(
            **{
                **content,
                "value": math.nan if value is None else float(value),
                "items": tuple((int(doc_id), float(score)) for doc_id, score in content["items"]),
                "groups": tuple(content["groups"]),
            }
        )


@dataclass(frozen=True)
class TaskScores:
    """One model on all its tasks: each of them once, groups as the tasks that they are made of."""

    scores: tuple[TaskScore, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"scores": [score.as_dict() for score in self.scores]}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> TaskScores:
        """What `as_dict` made."""
        return cls(tuple(TaskScore.from_dict(score) for score in content["scores"]))


def describe(error: Exception) -> str:
    """Kind and first line of an error; of one of ours, its message."""
    if isinstance(error, ValidationError):
        return error.message
    return "".join(traceback.format_exception_only(error)).strip().splitlines()[0]


def compare(dense: TaskScores, pruned: TaskScores, backend: str) -> list[TaskResult]:
    """Both models on every task that either was given, in the dense one's order.

    Items are paired by doc_id: one that is hard for both models says nothing of their difference.
    A task that failed for either, or whose items are not the same, becomes a result with `error`.
    """
    before = {score.task: score for score in dense.scores}
    after = {score.task: score for score in pruned.scores}
    return [
        _compared(task, before.get(task), after.get(task), backend)
        for task in dict.fromkeys([*before, *after])
    ]


def _compared(
    task: str, dense: TaskScore | None, pruned: TaskScore | None, backend: str
) -> TaskResult:
    known = dense or pruned
    assert known is not None
    error = _why_not(dense, pruned)
    if error is not None or dense is None or pruned is None:
        unknown = Estimate.unknown(_UNIT)
        return TaskResult(
            task=task,
            backend=backend,
            metric=known.metric,
            items=0,
            dense=math.nan,
            pruned=math.nan,
            difference=unknown,
            recovery=unknown,
            pruned_estimate=unknown,
            error=error,
            groups=known.groups,
        )
    before, after = [score for _, score in dense.items], [score for _, score in pruned.items]
    return TaskResult(
        task=task,
        backend=backend,
        metric=dense.metric,
        items=len(before),
        dense=dense.value,
        pruned=pruned.value,
        difference=difference_of_scores(before, after, _UNIT),
        recovery=ratio_of_scores(before, after, _UNIT),
        pruned_estimate=mean_score(after, _UNIT),
        floor=dense.floor,
        groups=dense.groups,
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
