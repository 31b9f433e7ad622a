# SPDX-License-Identifier: Apache-2.0
"""Hold what a latency table predicts against models that are timed from end to end.

    python benchmarks/latency.py --model examples/pytiny --dtype float32

Measures a table as `prunec profile` does and times whole models with random weights, dense and at
several layouts, taking turns between the two and among the models; prints a Markdown table of
dense time over pruned time, measured and predicted. Exit code 1 if a prediction is off by more
than a tenth.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from prunec.compiler.model.facts import Facts, facts_from_config
from prunec.compiler.model.headers import read_json
from prunec.compiler.model.layout import LayerSpec, Layout, dense_layout, sparsity
from prunec.compiler.model.modeling import classes_of
from prunec.compiler.profiler import machine, profile
from prunec.compiler.search.budget import Budget
from prunec.compiler.search.latency import Latency, Phase
from prunec.exporters import hf

TOLERANCE = 0.1
WARM_UP = 3
DENSE = "dense"

Forward = Callable[[], float]  # seconds of one pass


def layouts_of(facts: Facts, multiple_of: int) -> dict[str, Layout]:
    """What is compared, by name."""

    def uniform(share: float) -> Layout:
        return Budget(facts, share, multiple_of, False, lambda *shape: True).uniform_layout()

    dense = dense_layout(facts)
    quarter, half, most = uniform(0.25), uniform(0.5), uniform(0.75)
    dim, kv = facts.head_dim, facts.kv_heads
    per_group = facts.query_heads // kv
    no_attention = LayerSpec(0, 0, dim, facts.ffn)
    no_mlp = LayerSpec(kv * per_group, kv, dim, 0)
    narrow = LayerSpec(per_group, 1, dim, multiple_of)
    uneven = [dense[0], most[0], half[0], no_attention, narrow, no_mlp, quarter[0], most[0]]
    return {
        DENSE: dense,
        "uniform, 25 %": quarter,
        "uniform, 50 %": half,
        "uniform, 75 %": most,
        "dense and narrow in turn": tuple((dense[0], most[0])[i % 2] for i in range(len(dense))),
        "every layer another": tuple(uneven[i % len(uneven)] for i in range(len(dense))),
    }


def model_of(facts: Facts, layout: Layout, dtype: torch.dtype, device: torch.device) -> Any:
    """A model of a layout with random weights."""
    config = classes_of(facts.family.model_type).config.from_dict(
        hf.model_config(facts, layout, "per_layer", dtype)
    )
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config)
    return model.to(dtype).eval().requires_grad_(False)


def forwards(model: Any, batch: int, tokens: int, device: torch.device) -> dict[Phase, Forward]:
    """A timed prefill, and a timed step of decoding behind it."""
    ids = torch.randint(model.config.vocab_size, (batch, tokens), device=device)

    def timed(run: Callable[[], object]) -> float:
        _finish(device)
        began = time.perf_counter()
        run()
        _finish(device)
        return time.perf_counter() - began

    cache = DynamicCache()
    model(ids, past_key_values=cache, logits_to_keep=1)

    def decode() -> float:
        """The second of two steps: what comes before a step is one like it."""
        for _ in range(2):
            seconds = timed(lambda: model(ids[:, :1], past_key_values=cache, logits_to_keep=1))
        cache.crop(-2)
        return seconds

    return {
        "prefill": lambda: timed(lambda: model(ids, use_cache=False, logits_to_keep=1)),
        "decode": decode,
    }


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("examples/pytiny"), help="its folder")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--multiple-of", type=int, default=16)
    parser.add_argument("--blocks", type=int, default=8, help="turns of table and models")
    parser.add_argument("--repeats", type=int, default=10, help="samples of each in a turn")
    arguments = parser.parse_args()
    device, batch, tokens = torch.device(arguments.device), arguments.batch, arguments.tokens
    facts = facts_from_config(read_json(arguments.model / "config.json"))
    layouts = layouts_of(facts, arguments.multiple_of)
    timers = {
        name: forwards(
            model_of(facts, layout, getattr(torch, arguments.dtype), device), batch, tokens, device
        )
        for name, layout in layouts.items()
    }
    phases: tuple[Phase, ...] = ("prefill", "decode")
    measured: dict[tuple[Phase, str], list[float]] = {
        (phase, name): [] for phase in phases for name in layouts
    }
    tables: list[Latency] = []
    for block in range(arguments.blocks):
        print(f"turn {block + 1} of {arguments.blocks}", file=sys.stderr, flush=True)
        tables.append(
            profile(
                facts,
                arguments.dtype,
                device,
                batch=batch,
                tokens=tokens,
                multiple_of=arguments.multiple_of,
                repeats=arguments.repeats,
            )
        )
        for repeat in range(WARM_UP + arguments.repeats):
            for phase, name in measured:
                seconds = timers[name][phase]()
                if repeat >= WARM_UP:
                    measured[phase, name].append(seconds)
    print(f"{machine(device)}; {arguments.dtype}, batch {batch}, {tokens} tokens\n")
    print("| phase | layout | removed | ms | dense / pruned | predicted | off by |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    worst = 0.0
    for (phase, name), samples in measured.items():
        seconds = statistics.median(samples)
        real = statistics.median(measured[phase, DENSE]) / seconds
        predicted = statistics.median(
            table.times(phase).of_layout(layouts[DENSE])
            / table.times(phase).of_layout(layouts[name])
            for table in tables
        )
        off = predicted / real - 1
        worst = max(worst, abs(off))
        print(
            f"| {phase} | {name} | {sparsity(facts, layouts[name]):.1%} | {1e3 * seconds:.2f} "
            f"| {real:.3f} | {predicted:.3f} | {off:+.1%} |"
        )
    print(f"\nworst: {worst:.1%}; it may be {TOLERANCE:.0%}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    raise SystemExit(main())
