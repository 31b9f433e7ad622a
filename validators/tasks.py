# SPDX-License-Identifier: Apache-2.0
"""Tasks of lm-eval on a checkpoint folder, in a process of their own.

lm-eval seeds, patches and caches for a whole process, and a runtime's memory is free for the next
model only once its process has ended. `task_worker.py` is that process.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from prunec.validators.errors import ValidationError
from prunec.validators.task_comparison import compare
from prunec.validators.task_scores import TaskScore, TaskScores

__all__ = [
    "Backend",
    "TaskError",
    "TaskScore",
    "TaskScores",
    "TaskSettings",
    "check",
    "compare",
    "evaluate",
]

Backend = Literal["hf", "vllm"]

#: Relative to the folder that `evaluate` writes to.
RESULTS, SAMPLES, LOG = "results.json", "samples_{}.jsonl", "lm_eval.log"

_INSTALL = {"lm_eval": "pip install 'prunec[eval]'", "vllm": "pip install 'prunec[vllm]'"}
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "VLLM_NO_USAGE_STATS": "1"}
#: What the user may set otherwise. In one process vLLM starts in a tenth of the time; its cache on
#: a processor is so many GiB, where it would else ask for most of the machine's memory.
_DEFAULTS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


@dataclass(frozen=True)
class TaskSettings:
    """What to run, and how: the same for every model that is to be compared.

    names: tasks, groups or tags, of `include_path` or of lm-eval's registry
    include_path: folders with tasks of one's own
    metrics: by name, what is scored instead of a task's own first metric
    few_shot: examples before each item, None for what a task says itself; a task that says 0
        keeps it
    limit: items of each task at most, the first ones
    batch_size: sequences at once in `hf`; vLLM schedules by itself
    dtype: a name of torch's, as `bfloat16`
    max_length: tokens at most, None for what the model allows; longer items lose their beginning
    tensor_parallel: GPUs that vLLM splits a model over, where there are as many
    trust_remote_code: run the code that a model folder brings for its architecture
    """

    names: tuple[str, ...]
    include_path: tuple[Path, ...] = ()
    metrics: Mapping[str, str] = field(default_factory=dict)
    few_shot: int | None = None
    limit: int | None = None
    seed: int = 0
    chat_template: bool = False
    batch_size: int = 16
    dtype: str = "float32"
    max_length: int | None = None
    tensor_parallel: int = 1
    trust_remote_code: bool = False


class TaskError(ValidationError):
    """Tasks that cannot be run as they are asked for. `about`: the part of the settings at fault,
    `names`, `metrics` or `chance`."""

    def __init__(self, about: str, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.about = about


def check(settings: TaskSettings, *, chance: bool = False) -> None:
    """Look every name and metric up, before anything costly is begun; where the environment forbids
    a network, also whether the tasks' data is there. Takes seconds: it starts lm-eval.

    chance: what guessing scores has to be known of all tasks
    TaskError for a name or a metric that there is not, or data that cannot be had; ValidationError
    for a folder that there is not, or no lm-eval.
    """
    if not find_spec("lm_eval"):
        raise ValidationError("lm-eval is not installed", hint=_INSTALL["lm_eval"])
    answer = _ask(_request(settings) | {"chance": chance}, os.devnull)
    if error := answer.get("error"):
        raise ValidationError(f"lm-eval does not list its tasks: {error}")


def evaluate(
    folder: Path,
    backend: Backend,
    settings: TaskSettings,
    output: Path,
    on_progress: Callable[[int, int], None] | None = None,
) -> TaskScores:
    """Score a checkpoint folder on every task; groups and tags as the tasks they are made of.

    Where all tasks and their data are local, nothing reaches for a network; otherwise lm-eval gets
    the environment as it is. Beside the scores, `output` gets lm-eval's own results, untouched, as
    `results.json`, what it logged of every item as `samples_TASK.jsonl`, and `lm_eval.log`. If a
    task fails half-way, all are run one by one, and each that does not fail has `results_TASK.json`
    instead. `on_progress` gets the requests that the model has answered, and how many there are.

    What fails is a score with an `error`: a task that does not load or fails, that scored no items,
    whose answers are NaN; or all of them, if the model does not load or the runtime is missing.
    TaskError for a name or a metric that there is not (before any model is loaded), ValidationError
    for a folder of tasks that there is not.
    """
    for package in ("lm_eval", "vllm") if backend == "vllm" else ("lm_eval",):
        if not find_spec(package):
            what = package.replace("_", "-")
            return _all(settings, f"{what} is not installed: {_INSTALL[package]}")
    output.mkdir(parents=True, exist_ok=True)
    for pattern in ("results*.json", SAMPLES.format("*"), LOG):
        for old in output.glob(pattern):
            old.unlink()
    request = _request(settings) | {
        "folder": str(folder.resolve()),
        "backend": backend,
        "output": str(output.resolve()),
    }
    answer = _ask(request, output / LOG, on_progress)
    if error := answer.get("error"):
        return _all(settings, str(error))
    return TaskScores.from_dict(answer)


def _all(settings: TaskSettings, error: str) -> TaskScores:
    return TaskScores(tuple(TaskScore(name, error=error) for name in settings.names))


def _request(settings: TaskSettings) -> dict[str, Any]:
    for path in settings.include_path:
        if not path.is_dir():
            raise ValidationError(
                f"{path} is no folder of tasks",
                hint="include_path names folders that hold YAML files",
            )
    paths = [str(path.resolve()) for path in settings.include_path]
    return asdict(settings) | {"include_path": paths}


def _ask(
    request: Mapping[str, Any],
    log: str | Path,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """The worker's answer, or `error` with how it ended. TaskError for what it refuses."""
    answer = _run({**request, "offline": True}, _OFFLINE, log, on_progress)
    if answer.get("online"):
        answer = _run({**request, "offline": False}, {}, log, on_progress)
    if refused := answer.get("refused"):
        raise TaskError(refused["about"], refused["message"], refused["hint"])
    return answer


def _run(
    request: Mapping[str, Any],
    environment: Mapping[str, str],
    log: str | Path,
    on_progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    with (
        Path(log).open("w+b") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "prunec.validators.task_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**_DEFAULTS, **os.environ, **_ENVIRONMENT, **environment},
            # A group of its own, to be ended as one: runtimes may start processes too.
            start_new_session=True,
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(json.dumps(request).encode())
            for line in process.stdout:
                message = json.loads(line)
                if "done" not in message:
                    answer = message
                elif on_progress is not None:
                    on_progress(message["done"], message["total"])
            process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # none is left
                os.killpg(process.pid, signal.SIGKILL)
        return answer or {"error": _epitaph(process.returncode, Path(log))}


def _epitaph(code: int, log: Path) -> str:
    """How a process ended, and the last line that it logged."""
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
    lines = log.read_text("utf-8", "replace").splitlines() if log.is_file() else []
    said = [line.strip() for line in lines if re.search(r"\w", line) and "it/s]" not in line]
    return f"lm-eval {how}" + (f": {said[-1]}" if said else "")
