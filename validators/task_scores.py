# SPDX-License-Identifier: Apache-2.0
"""What one model scored on tasks, item by item."""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from prunec.validators.errors import ValidationError


@dataclass(frozen=True)
class TaskScore:
    """One model on one task.

    metric: its name in lm-eval, `NAME` or, behind a filter of the task's own, `NAME,FILTER`
    value: what lm-eval reports, which is the mean of `items`; NaN where there is an error
    items: (doc_id, score) in order of doc_id
    floor: the score of the best constant answer, None where there are no choices
    chance: the score of guessing among the choices, None likewise
    digest: of the items' contents, so that scores of other items are not compared
    error: why there is no score
    groups: groups and tags that were asked for and brought the task
    """

    task: str
    metric: str = ""
    value: float = math.nan
    items: tuple[tuple[int, float], ...] = ()
    floor: float | None = None
    chance: float | None = None
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
            "chance": self.chance,
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
class Pool:
    """A group or tag that was asked for, whose tasks are scored together too.

    tasks: all tasks in it, at any depth; by_size: every item counts alike, as in lm-eval's
    aggregation by size, otherwise every task
    """

    name: str
    tasks: tuple[str, ...]
    by_size: bool = True


@dataclass(frozen=True)
class TaskScores:
    """One model on all its tasks, each of them once, and how groups are made of them."""

    scores: tuple[TaskScore, ...]
    pools: tuple[Pool, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "scores": [score.as_dict() for score in self.scores],
            "pools": [asdict(pool) | {"tasks": list(pool.tasks)} for pool in self.pools],
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> TaskScores:
        """What `as_dict` made."""
        return cls(
            tuple(TaskScore.from_dict(score) for score in content["scores"]),
            tuple(Pool(**pool | {"tasks": tuple(pool["tasks"])}) for pool in content["pools"]),
        )


def describe(error: Exception) -> str:
    """Kind and first line of an error; of one of ours, its message."""
    if isinstance(error, ValidationError):
        return error.message
    return "".join(traceback.format_exception_only(error)).strip().splitlines()[0]
