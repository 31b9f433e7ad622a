# SPDX-License-Identifier: Apache-2.0
"""The process in which lm-eval runs: `tasks.py` starts it.

Reads one request (JSON) from standard input. Writes lines of JSON to standard output: any number
of `{"done": n, "total": m}`, then one answer: `{"scores": …}`, `{"unknown": {name: [near, …]}}`,
`{"online": true}` (to be started again, without the offline environment) or `{"error": …}`.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
import traceback
from collections.abc import Mapping
from typing import Any, TextIO

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
    leaves = [leaf for name in names for leaf in leaves_of(manager.task_index, name)]
    if request["offline"] and not all(map(is_local, leaves)):
        return {"online": True}
    if None in leaves:
        # Indexing the registry takes ten seconds, so only where it is needed.
        manager = TaskManager(include_path=paths, include_defaults=True)
        known = manager.all_tasks
        if unknown := [name for name in names if name not in known]:
            return {"unknown": {name: difflib.get_close_matches(name, known) for name in unknown}}
    if "folder" not in request:
        return {"scores": []}
    from prunec.validators.task_run import run

    return run(manager, names, request, channel).as_dict()


if __name__ == "__main__":
    main()
