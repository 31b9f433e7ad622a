# SPDX-License-Identifier: Apache-2.0
"""A part of `serving.py`: where the time of a dense and of a halved model goes, by kind of work."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

#: Parts of the names of operators, in the order in which they are looked for.
KINDS = {
    "matrices": ("mm", "linear", "onednn", "mkl", "matmul"),
    "attention": ("attention", "reshape_and_cache", "softmax"),
    "norms, rotations, activations": ("norm", "rotary", "silu", "mul", "pow", "rsqrt", "neg"),
}
HEAD, OTHER = "matrices: head", "other operators"
WHOLE = "all, CPU time without profiler"


def show(folders: tuple[Path, Path], arguments: argparse.Namespace, dtype: str) -> None:
    """Prints a Markdown table for each runtime, phase and batch size."""
    print("| runtime | dtype | batch | phase | work | dense, ms | half, ms | ratio |")
    print("| --- | --- | ---: | --- | --- | ---: | ---: | ---: |")
    for runtime in arguments.runtime:
        for batch in arguments.batch:
            dense, half = (_in_a_process(f, runtime, batch, arguments, dtype) for f in folders)
            for phase, before in dense.items():
                for kind in before:
                    a, b = before[kind], half[phase].get(kind, 0.0)
                    ratio = f"{a / b:.2f}" if b else ""
                    what = f"{runtime} | {dtype} | {batch} | {phase} | {kind}"
                    print(f"| {what} | {a:.2f} | {b:.2f} | {ratio} |", flush=True)


def _in_a_process(
    folder: Path, runtime: str, batch: int, arguments: argparse.Namespace, dtype: str
) -> dict[str, dict[str, float]]:
    asked = {
        "batch_sizes": [batch],
        "prompt_tokens": arguments.prompt_tokens[0],
        "new_tokens": arguments.new_tokens,
        "dtype": dtype,
        "threads": arguments.threads,
        "clock": "process_time",
        "seed": 0,
        "trust_remote_code": False,
        "engine": {},
    }
    from prunec.validators.speed_process import ENVIRONMENT

    threads = {"OMP_NUM_THREADS": str(arguments.threads)} if arguments.threads else {}
    ran = subprocess.run(
        [sys.executable, __file__, runtime, str(folder), json.dumps(asked)],
        env=os.environ | ENVIRONMENT | threads,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    found: dict[str, dict[str, float]] = json.loads(ran.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Profile one model: `serving_profile.py RUNTIME FOLDER SETTINGS`, milliseconds as JSON."""
    import importlib

    import numpy as np

    runtime, folder, said = sys.argv[1:]
    settings = json.loads(said)
    runner = importlib.import_module(f"prunec.validators.speed_{runtime}").open_runner(
        Path(folder), settings
    )
    shape = settings["batch_sizes"][0], settings["prompt_tokens"]
    ids = np.random.default_rng(0).integers(runner.vocab_size, size=shape)
    runner.generate(ids, 1)
    # The two differ by the steps of decoding that come behind the first.
    short = _profiled(runner, ids, 1)
    long = _profiled(runner, ids, settings["new_tokens"])
    steps = settings["new_tokens"] - 1
    step = {k: max(0.0, long[k] - short[k]) / steps for k in long}
    prefill = {k: max(0.0, short[k] - step[k]) for k in long}
    print(json.dumps({"prefill": prefill, "decode": step}))


def _profiled(runner: Any, ids: Any, new_tokens: int, runs: int = 7) -> dict[str, float]:
    """Milliseconds by kind of work: the least of several runs, since a machine may be busy."""
    from torch.profiler import ProfilerActivity, profile

    least: dict[str, float] = {}
    for run in range(runs):
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
            runner.generate(ids, new_tokens)
        whole = 1e3 * sum(runner.generate(ids, new_tokens))
        spent = dict.fromkeys([*KINDS, HEAD, OTHER], 0.0)
        for event in profiled.key_averages(group_by_input_shape=True):
            spent[_kind(event, runner)] += event.self_cpu_time_total / 1e3
        spent[WHOLE] = whole
        for kind, milliseconds in spent.items():
            least[kind] = min(least[kind], milliseconds) if run else milliseconds
    return least


def _kind(event: Any, runner: Any) -> str:
    name = event.key
    for kind, parts in KINDS.items():
        if any(part in name for part in parts):
            sizes = str(event.input_shapes)
            is_head = kind == "matrices" and str(runner.vocab_size) in sizes
            return HEAD if is_head else kind
    return OTHER


if __name__ == "__main__":
    main()
