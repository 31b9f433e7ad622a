# SPDX-License-Identifier: Apache-2.0
"""What is wrong with tasks that are asked for, as far as lm-eval's index tells: refusals in words.

`leaves` are the configs of the tasks that each name stands for, None where the index has none.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

Leaves = Mapping[str, Sequence[Mapping[str, Any] | None]]
#: `about` (the part of the settings), `message`, `hint`.
Refusal = dict[str, str | None]

_FORBIDDING = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


def unknown_name(name: str, known: Collection[str]) -> Refusal:
    """A name that is not among those known."""
    near = difflib.get_close_matches(name, known)
    hint = (
        f"did you mean {' or '.join(near)}?"
        if near
        else "`lm_eval ls tasks` lists those of lm-eval, include_path adds your own"
    )
    return _refusal("names", f"there is no task {name!r}", hint)


def unfit_metric(leaves: Leaves, asked: Mapping[str, str]) -> Refusal | None:
    """A metric that a task does not have, of which less is better, or that differs from the one
    that another name asks for of the same task."""
    chosen: dict[str, tuple[str, str | None]] = {}
    for name, configs in leaves.items():
        for config in configs:
            task = str((config or {}).get("task", name))
            metric = asked.get(name)
            first, before = chosen.setdefault(task, (name, metric))
            if before != metric:
                said = " and ".join(
                    f"{other or 'its own metric'} for {asker}"
                    for asker, other in ((first, before), (name, metric))
                )
                message = f"{task} is scored once, and asked for with {said}"
                return _refusal("metrics", message, "choose one metric for both")
            if metric and config and (problem := _problem(task, config, metric)):
                return _refusal("metrics", *problem)
    return None


def _problem(task: str, config: Mapping[str, Any], metric: str) -> tuple[str, str] | None:
    """Why a task cannot be scored by a metric, and what would help."""
    listed = config.get("metric_list")
    if not listed or "process_results" in config:
        return None  # it names its metrics only as it runs
    known = {str(each["metric"]): each.get("higher_is_better", True) for each in listed}
    bare = metric.partition(",")[0]
    better = [name for name, higher in known.items() if higher]
    hint = f"choose {' or '.join(better)}" if better else f"leave {task} out"
    if bare not in known:
        return f"{task} has no metric {metric!r}; it has {', '.join(known)}", hint
    if not known[bare]:
        return f"less of {bare} is better, which no gate on a score is for", hint
    return None


def without_choices(leaves: Leaves) -> Refusal | None:
    """A task that does not choose among answers, so that guessing has no score."""
    for name, configs in leaves.items():
        for config in configs:
            kind = (config or {}).get("output_type", "multiple_choice")
            if kind != "multiple_choice":
                task = str((config or {}).get("task", name))
                return _refusal(
                    "chance",
                    f"{task} is {kind}, no choice among answers, so that nobody knows what "
                    "guessing scores",
                    "gate it by min_recovery",
                )
    return None


def forbids_network(environment: Mapping[str, str]) -> bool:
    """Whether the environment forbids Hugging Face's libraries to use a network."""
    return any(_forbidding(environment))


def _forbidding(environment: Mapping[str, str]) -> Iterator[str]:
    for name in _FORBIDDING:
        if environment.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}:
            yield name


def unreachable(name: str, reason: str) -> Refusal:
    """A task whose data does not load where the environment forbids a network."""
    return _refusal(
        "names",
        f"the data of {name} is not on this machine, and the environment forbids a network "
        f"({' or '.join(_FORBIDDING)}): {reason}",
        "load the data once where there is a network, or take tasks whose data is local",
    )


def _refusal(about: str, message: str, hint: str) -> Refusal:
    return {"about": about, "message": message, "hint": hint}
