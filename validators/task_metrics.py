# SPDX-License-Identifier: Apache-2.0
"""One number an item from what lm-eval logged of a task, and what constant answers and guesses
would score."""

from __future__ import annotations

import hashlib
import math
import numbers
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from prunec.validators.task_scores import TaskScore

_UNLIKELY = -1e9  # a log-likelihood


def score_of(
    name: str, task: Any, results: Mapping[str, Any], asked: str | None = None
) -> TaskScore:
    """The score of one of lm-eval's tasks, from the results of `simple_evaluate` with its samples.

    asked: the metric, `NAME` or, behind a filter of the task's own, `NAME,FILTER`; None takes the
    first of the task's own order that can be taken: of which more is better and which is the mean
    of one number an item, since only such a one can be compared item by item. Where a task has
    several filters, the first of them counts.
    """
    samples: Sequence[Mapping[str, Any]] = results["samples"][name]
    values: Mapping[str, Any] = results["results"][name]
    if not samples:
        return TaskScore(name, error="scored no items")
    if lost := {sample["doc_id"] for sample in samples if not _are_numbers(sample["resps"])}:
        count = len({sample["doc_id"] for sample in samples})
        # An argmax over NaN is the first choice: it would score what a constant answer scores.
        return TaskScore(name, error=f"the model's answers to {len(lost)} of {count} items are NaN")
    better = results["higher_is_better"][name]
    for metric in (metric for metric, higher in better.items() if higher):
        for key in (key for key in values if key.split(",")[0] == metric):
            if asked not in (None, metric, key):
                continue
            kind = key.partition(",")[2]
            of_kind = [s for s in samples if s["filter"] == kind and metric in s]
            items = tuple(
                sorted((s["doc_id"], s[metric]) for s in of_kind if _is_number(s[metric]))
            )
            if not items or len(items) < len(of_kind):
                continue
            items = tuple((int(doc_id), float(score)) for doc_id, score in items)
            mean = fmean(score for _, score in items)
            if not math.isfinite(mean):
                return TaskScore(name, metric, error=f"{metric} of some items is {mean}")
            if math.isclose(mean, values[key], rel_tol=1e-6, abs_tol=1e-9):
                floor, chance = _blind(task, metric, of_kind)
                return TaskScore(
                    task=name,
                    metric=metric if kind == "none" else key,
                    value=mean,
                    items=items,
                    floor=floor,
                    chance=chance,
                    digest=_digest(of_kind),
                )
    none = f"no metric {asked}" if asked else "no metric"
    return TaskScore(
        name,
        error=f"has {none} of which more is better and which is a mean over items; it has "
        f"{', '.join(better) or 'none at all'}",
    )


def _blind(
    task: Any, metric: str, samples: Sequence[Mapping[str, Any]]
) -> tuple[float | None, float | None]:
    """What needs no reading: the best mean score of answering every item with its i-th choice, over
    all i, and the mean score of guessing among an item's choices.

    None where a task has no choices. The task itself judges the answers, so that it is right for
    whatever it counts as right.
    """
    if task.OUTPUT_TYPE != "multiple_choice" or not hasattr(task, "doc_to_choice"):
        return None, None
    try:
        scores = [
            [
                _constant(task, metric, sample, index)
                for index in range(len(task.doc_to_choice(sample["doc"])))
            ]
            for sample in samples
        ]
        most = max(map(len, scores))
        floor = max(
            fmean(each[index] if index < len(each) else 0.0 for each in scores)
            for index in range(most)
        )
        return floor, fmean(map(fmean, scores))
    except Exception:  # a scoring function of the task's own may want more than likelihoods
        return None, None


def _constant(task: Any, metric: str, sample: Mapping[str, Any], index: int) -> float:
    """What an item scores if its choice `index` is the only likely one."""
    asked = len(sample["arguments"])
    answers = [(0.0, True) if i == index else (_UNLIKELY, False) for i in range(asked)]
    return float(task.process_results(sample["doc"], answers)[metric])


def _digest(samples: Sequence[Mapping[str, Any]]) -> str:
    """Of the items, whatever order they come in."""
    lines = sorted((s["doc_id"], s["doc_hash"], s["target_hash"]) for s in samples)
    return hashlib.sha256(repr(lines).encode()).hexdigest()


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) or type(value).__name__ == "bool"  # NumPy's bool too


def _are_numbers(answers: Any) -> bool:
    """Whether no NaN is in a tree of lists and tuples."""
    if isinstance(answers, list | tuple):
        return all(map(_are_numbers, answers))
    return not (isinstance(answers, numbers.Real) and math.isnan(answers))
