# SPDX-License-Identifier: Apache-2.0
"""lm-eval's tasks on one model: loads both, runs, keeps what lm-eval reports. Imports lm-eval."""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import lm_eval
import torch
from lm_eval.api.model import CacheHook
from lm_eval.api.registry import get_model
from lm_eval.utils import handle_non_serializable
from transformers import CONFIG_MAPPING

from prunec.validators.hardware import ranks_here
from prunec.validators.loading import open_model
from prunec.validators.task_metrics import score_of
from prunec.validators.task_scores import Pool, TaskScore, TaskScores, describe
from prunec.validators.tasks import RESULTS, SAMPLES
from prunec.validators.tokenizers import complete_special_tokens

_RESAMPLES = 1000  # for the standard errors in lm-eval's own results, where no formula gives them


def run(
    manager: Any, names: Sequence[str], request: Mapping[str, Any], channel: TextIO
) -> TaskScores:
    """Score the model of `request` on the tasks of `manager` that the names stand for.

    Progress goes to `channel`, lm-eval's results to the request's output folder. A model that does
    not load raises; a task that does not load or fails becomes a score with its error.
    """
    scores: dict[str, TaskScore | None] = {}  # of tasks, in order; None: loaded and to be run
    tasks: dict[str, Any] = {}
    groups: dict[str, tuple[str, ...]] = {}
    pools: list[Pool] = []
    metrics: dict[str, str | None] = {}  # by task
    chosen: list[Any] = []  # tasks, and groups, of which lm-eval reports a score of their own
    for name in names:
        try:
            loaded = manager.load([name])
        except Exception as error:  # of a YAML file, a dataset's loader or a task's functions
            traceback.print_exc()
            scores[name] = TaskScore(name, error=_why_not_loaded(error))
            continue
        asked = request["metrics"].get(name)
        for leaf in loaded["tasks"]:
            groups[leaf] = (*groups.get(leaf, ()), *([name] if leaf != name else []))
            metrics[leaf] = asked
        if list(loaded["tasks"]) != [name]:
            pools.append(Pool(name, tuple(loaded["tasks"]), _by_size(loaded, name, asked)))
        new = {leaf: task for leaf, task in loaded["tasks"].items() if leaf not in tasks}
        tasks |= new
        scores |= dict.fromkeys(new)
        chosen += [loaded["groups"][name]] if name in loaded["groups"] else new.values()
    if tasks:
        session = _Session(request, manager, channel, metrics)
        scores |= _scored(session, tasks, chosen)
    found = (score for score in scores.values() if score is not None)
    grouped = tuple(replace(s, groups=groups.get(s.task, ())) for s in found)
    return TaskScores(grouped, tuple(pools))


def _by_size(loaded: Mapping[str, Any], name: str, metric: str | None) -> bool:
    """Whether lm-eval's own score of a group counts items alike, and not tasks."""
    group = loaded["groups"].get(name)
    rules = (group.aggregate_metric_list if group else None) or []
    fitting = [rule for rule in rules if metric and rule.metric == metric.partition(",")[0]]
    return all(rule.weight_by_size for rule in (fitting or rules)[:1])


class _Session:
    """The loaded model, and what every run on it has in common."""

    def __init__(
        self,
        request: Mapping[str, Any],
        manager: Any,
        channel: TextIO,
        metrics: Mapping[str, str | None],
    ) -> None:
        self.output = Path(request["output"])
        self.metrics = metrics
        self._request, self._manager, self._channel = request, manager, channel
        self._model, self._model_args = _open(request)

    def evaluate(self, chosen: Sequence[Any], tasks: Mapping[str, Any]) -> dict[str, Any]:
        """`simple_evaluate` of tasks and groups; `tasks` are all tasks in them."""
        request = self._request
        self._model.set_cache_hook(_Progress(tasks, self._channel))
        seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
        results: dict[str, Any] = lm_eval.simple_evaluate(
            self._model,
            model_args=self._model_args,  # for the record: the model is there
            tasks=list(chosen),
            task_manager=self._manager,
            num_fewshot=request["few_shot"],
            limit=request["limit"],
            batch_size=request["batch_size"],
            apply_chat_template=request["chat_template"],
            bootstrap_iters=_RESAMPLES,
            log_samples=True,
            **dict.fromkeys(seeds, request["seed"]),
        )
        return results


def _scored(
    session: _Session, tasks: Mapping[str, Any], chosen: Sequence[Any], file: str = RESULTS
) -> dict[str, TaskScore]:
    """Scores by task. lm-eval's results go to `file` in the output folder."""
    try:
        results = session.evaluate(chosen, tasks)
    except Exception as error:  # of any of the tasks, or of the model
        traceback.print_exc()
        if len(tasks) == 1:
            return {name: TaskScore(name, error=_why_failed(error)) for name in tasks}
        # One of them took the others with it.
        scores: dict[str, TaskScore] = {}
        for name, task in tasks.items():
            scores |= _scored(session, {name: task}, [task], f"results_{_file_name(name)}.json")
        return scores
    metrics = session.metrics
    scores = {n: score_of(n, task, results, metrics[n]) for n, task in tasks.items()}
    for name, samples in results.pop("samples").items():
        lines = [json.dumps(s, default=handle_non_serializable) + "\n" for s in samples]
        _write(session.output / SAMPLES.format(_file_name(name)), "".join(lines))
    # As lm-eval's own command writes it.
    content = json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False)
    _write(session.output / file, content)
    return scores


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _file_name(task: str) -> str:
    return re.sub(r"[^\w.-]", "_", task)


class _Progress(CacheHook):  # type: ignore[misc]  # lm-eval is unknown to the type checker
    """Tells how many requests are answered: models call `add_partial` after each."""

    def __init__(self, tasks: Mapping[str, Any], channel: TextIO) -> None:
        super().__init__(None)
        self._tasks, self._channel = tasks, channel
        self._done = self._told = 0

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self._done += 1
        total = sum(len(task.instances) for task in self._tasks.values())
        if self._done * 100 // total > self._told and self._done <= total:
            self._told = self._done * 100 // total
            message = {"done": self._done, "total": total}
            print(json.dumps(message), file=self._channel, flush=True)


def _open(request: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """lm-eval's model of the folder, and the arguments that would give it from a command line."""
    folder = Path(request["folder"])
    file = folder / "config.json"
    config = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    # Only where there is code: vLLM and transformers take "trust" as a preference for it.
    trust = request["trust_remote_code"] and "auto_map" in config
    arguments = {"pretrained": str(folder), "dtype": request["dtype"]}
    if request["backend"] == "vllm":
        from vllm.plugins import load_general_plugins

        load_general_plugins()  # they may make the architecture known
        on_gpu = torch.cuda.is_available()
        arguments |= {
            "max_model_len": request["max_length"],
            "trust_remote_code": trust and config.get("model_type") not in CONFIG_MAPPING,
            "seed": request["seed"],
            "enforce_eager": not on_gpu,  # on a processor, compiling a model takes a minute
            "tensor_parallel_size": ranks_here(request["tensor_parallel"]),
        }
        engine = get_model("vllm")(**arguments, batch_size="auto")
        complete_special_tokens(engine.tokenizer, folder)
        return engine, arguments
    arguments |= {"max_length": request["max_length"], "trust_remote_code": trust}
    dtype = getattr(torch, request["dtype"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # Opened like for every other measurement: lm-eval itself would not mind missing weights.
    model = open_model(folder, dtype, trust_remote_code=trust, device=device)
    wrapped = get_model("hf")(
        pretrained=model.model,
        tokenizer=complete_special_tokens(model.tokenizer(), folder),
        backend="causal",
        batch_size=request["batch_size"],
        max_length=request["max_length"],
    )
    return wrapped, arguments


def _why_not_loaded(error: Exception) -> str:
    if isinstance(error, IndexError) and "size 0" in str(error):
        return "scored no items: its dataset is empty"  # lm-eval looks at the first item
    return f"does not load: {describe(error)}"


def _why_failed(error: Exception) -> str:
    if "did not find any docs" in str(error):
        return "scored no items"
    return f"failed: {describe(error)}"
