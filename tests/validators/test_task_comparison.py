# SPDX-License-Identifier: Apache-2.0
"""Groups of tasks: all their items together, and what is said where that cannot be."""

from __future__ import annotations

import math
from typing import Any

import pytest

from prunec.validators.measurements import TaskResult
from prunec.validators.task_comparison import compare
from prunec.validators.task_scores import Pool, TaskScore, TaskScores


def score(task: str, right: int, of: int, **other: Any) -> TaskScore:
    """A task whose first `right` items are answered rightly."""
    items = tuple((i, float(i < right)) for i in range(of))
    usual: dict[str, Any] = {"metric": "acc", "floor": 0.3, "chance": 0.25, "groups": ("all",)}
    return TaskScore(task, value=right / of, items=items, digest=task, **usual | other)


def scores(*each: TaskScore, by_size: bool = True) -> TaskScores:
    return TaskScores(each, (Pool("all", tuple(one.task for one in each), by_size),))


def by_name(found: list[TaskResult]) -> dict[str, TaskResult]:
    return {result.task: result for result in found}


def test_a_group_that_passes_is_made_of_tasks_that_settle_nothing() -> None:
    # As with MMLU: 57 tasks of 20 items each, of which one is lost in every other one.
    names = [f"leaf_{number}" for number in range(57)]
    before = scores(*(score(name, 13, 20) for name in names))
    after = scores(*(score(name, 13 - n % 2, 20) for n, name in enumerate(names)))
    found = compare(before, after, "hf")
    assert [result.task for result in found] == ["all", *names]
    group, *leaves = found
    assert group.tasks == tuple(names) and group.groups == ()
    assert group.items == 1140
    assert group.dense == pytest.approx(0.65)
    assert group.recovery.value == pytest.approx((13 * 57 - 28) / (13 * 57))
    assert group.recovery.low > 0.94
    assert all(leaf.recovery.low < 0.9 for leaf in leaves)
    assert group.floor == pytest.approx(0.3)
    assert group.chance == pytest.approx(0.25)
    above = group.recovery_above_chance
    assert above and above.value == pytest.approx((group.pruned - 0.25) / (0.65 - 0.25))


def test_a_group_counts_items_or_tasks_alike_as_lm_eval_would() -> None:
    large, small = score("large", 60, 100), score("small", 2, 10)
    by_items = by_name(compare(scores(large, small), scores(large, small), "hf"))["all"]
    assert by_items.dense == by_items.pruned == pytest.approx(62 / 110)
    other = scores(large, small, by_size=False)
    by_tasks = by_name(compare(other, other, "hf"))["all"]
    assert by_tasks.dense == by_tasks.pruned == pytest.approx((0.6 + 0.2) / 2)
    assert by_tasks.difference.high > by_items.difference.high


def test_a_group_with_a_task_that_failed_or_scores_otherwise_has_no_figures() -> None:
    whole = scores(score("a", 5, 10), score("b", 5, 10))
    part = scores(score("a", 5, 10), TaskScore("b", error="failed: oops", groups=("all",)))
    group = by_name(compare(whole, part, "hf"))["all"]
    assert group.error == ("1 of its 2 tasks were not measured, b: pruned model: failed: oops")
    assert math.isnan(group.dense)
    mixed = scores(score("a", 5, 10), score("b", 5, 10, metric="f1"))
    group = by_name(compare(mixed, mixed, "hf"))["all"]
    assert group.error == "its tasks have different metrics, acc, f1: choose one in `metric`"


def test_chance_of_a_group_is_known_only_if_that_of_every_task_is() -> None:
    found = scores(score("a", 5, 10), score("b", 5, 10, chance=None, floor=None))
    results = by_name(compare(found, found, "hf"))
    assert results["all"].chance is None
    assert results["all"].recovery_above_chance is None
    assert results["a"].recovery_above_chance is not None


@pytest.mark.parametrize("dead_first", [False, True])
def test_a_process_that_died_is_the_error_of_a_group_and_of_its_tasks(dead_first: bool) -> None:
    alive = scores(score("a", 5, 10), score("b", 5, 10))
    dead = TaskScores((TaskScore("all", error="lm-eval was killed by SIGKILL"),))
    pair = (dead, alive) if dead_first else (alive, dead)
    found = by_name(compare(*pair, "vllm"))
    which = "dense" if dead_first else "pruned"
    assert list(found) == ["all", "a", "b"]
    for result in found.values():
        assert result.error == f"{which} model: lm-eval was killed by SIGKILL"
    [both] = compare(dead, dead, "vllm")
    assert (both.task, both.error) == ("all", "lm-eval was killed by SIGKILL")
