# SPDX-License-Identifier: Apache-2.0
"""The process in which lm-eval runs: `tasks.py` starts it.

Reads one request (JSON) from standard input. Writes lines of JSON to standard output: any number
of `{"done": n, "total": m}`, then one answer: `{"scores": …, "pools": …}`,
`{"refused": {"about": …, "message": …, "hint": …}}`, `{"online": true}` (to be started again,
without the offline environment) or `{"error": …}`.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from prunec.validators.task_checks import (
    Refusal,
    forbids_network,
    unfit_metric,
    unknown_name,
    unreachable,
    without_choices,
)
from prunec.validators.task_names import is_local, leaves_of
from prunec.validators.task_scores import describe


def main() -> None:
    """Answer the request on standard input."""
    # What libraries print must not get in between.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    try:
        answer = _answer(request, channel)
    except Exception as error:  # of lm-eval, a runtime or a folder's code: anything at all
        traceback.print_exc()
        answer = {"error": describe(error)}
    print(json.dumps(answer), file=channel, flush=True)


def _answer(request: Mapping[str, Any], channel: TextIO) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    names: list[str] = list(dict.fromkeys(request["names"]))
    paths = request["include_path"]
    manager = TaskManager(include_path=paths, include_defaults=False)
    leaves = {name: list(leaves_of(manager.task_index, name)) for name in names}
    local = all(is_local(leaf) for each in leaves.values() for leaf in each)
    if request["offline"] and not local:
        return {"online": True}
    if any(None in each for each in leaves.values()):
        # Indexing the registry takes ten seconds, so only where it is needed.
        manager = TaskManager(include_path=paths, include_defaults=True)
        if unknown := [name for name in names if name not in manager.all_tasks]:
            return {"refused": unknown_name(unknown[0], manager.all_tasks)}
        leaves = {name: list(leaves_of(manager.task_index, name)) for name in names}
    refused = unfit_metric(leaves, request["metrics"])
    if not refused and request.get("chance"):
        refused = without_choices(leaves)
    if not refused and not local and "folder" not in request and forbids_network(os.environ):
        refused = _unreachable(manager, names)
    if refused:
        return {"refused": refused}
    if "folder" not in request:
        return {"scores": [], "pools": []}
    from prunec.validators.task_run import run

    return run(manager, names, request, channel).as_dict()


def _unreachable(manager: Any, names: Sequence[str]) -> Refusal | None:
    """The first name whose data does not load as things are, without a network."""
    for name in names:
        try:
            manager.load([name])
        except Exception as error:  # of a YAML file, a dataset's loader or a task's functions
            traceback.print_exc()
            return unreachable(name, describe(error))
    return None


if __name__ == "__main__":
    main()
