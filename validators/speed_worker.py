# SPDX-License-Identifier: Apache-2.0
"""A process that holds one model in one runtime and times it when it is told to.

    python -m prunec.validators.speed_worker RUNTIME FOLDER

Reads requests from standard input and answers each on standard output, one JSON object a line;
`speed_process.py` is the other end. What libraries print goes to standard error. A runtime is a
module `speed_RUNTIME` with a function `open_runner(folder, settings)`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
from numpy.typing import NDArray

#: Longest error that is passed on: a library's may be a page.
_LONGEST = 300


class Runner(Protocol):
    """A model that is ready to generate. Its token ids are 0 … vocab_size - 1."""

    @property
    def vocab_size(self) -> int: ...

    def generate(self, ids: NDArray[np.int64], new_tokens: int) -> tuple[float, float]:
        """Read prompts `ids` [batch, tokens] and continue them greedily, past any end of text.

        Seconds until every text has its first token, and seconds of the `new_tokens` further
        steps, which give each text one token.
        """
        ...


def take_turn(
    runner: Runner,
    *,
    batch: int,
    prompt_tokens: int,
    new_tokens: int,
    vocab_size: int,
    seed: Sequence[int],
    least_seconds: float,
    cores: Sequence[int],
) -> dict[str, float]:
    """Seconds of `prefill`, and of one step of `decode`: means over as many runs as it takes for
    each to last for `least_seconds`. Where one run does not, the first does not count: it finds
    caches that others have filled.

    Prompts are random ids below `vocab_size`, the same for every model with the same `seed`.
    `cores` are those to run on; none leaves it to the system.
    """
    if cores:
        _run_on(cores)
    ids = np.random.default_rng(seed).integers(vocab_size, size=(batch, prompt_tokens))
    prefill, decode = runner.generate(ids, new_tokens)
    runs = 1
    if min(prefill, decode) < least_seconds:
        prefill = decode = 0.0
        runs = 0
        while min(prefill, decode) < least_seconds:
            first, further = runner.generate(ids, new_tokens)
            prefill, decode, runs = prefill + first, decode + further, runs + 1
    return {"prefill": prefill / runs, "decode": decode / runs / new_tokens}


def main() -> None:
    runtime, folder = sys.argv[1:]
    requests, replies = _channel()
    runner: Runner | None = None
    for line in requests:
        request: dict[str, Any] = json.loads(line)
        try:
            if runner is None:
                runner = _open(runtime, Path(folder), request)
                reply: dict[str, Any] = {"vocab_size": runner.vocab_size}
            else:
                reply = take_turn(runner, **request)
        except Exception as error:  # whatever a runtime makes of a model
            traceback.print_exc()
            reply = {"error": _in_a_line(error)}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def _run_on(cores: Sequence[int]) -> None:
    """Put all threads that there are on these cores; threads to come inherit it."""
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cores)


def _open(runtime: str, folder: Path, settings: Mapping[str, Any]) -> Runner:
    module = importlib.import_module(f"prunec.validators.speed_{runtime}")
    runner: Runner = module.open_runner(folder, settings)
    return runner


def _channel() -> tuple[TextIO, TextIO]:
    """Standard input and output for requests and replies alone: nobody else may read or print."""
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return requests, replies


def _in_a_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"


if __name__ == "__main__":
    main()
