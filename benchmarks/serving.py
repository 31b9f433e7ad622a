# SPDX-License-Identifier: Apache-2.0
"""How much faster half a model is served: vLLM's engine and transformers' generate.

    python benchmarks/serving.py --dtype bfloat16 --prompt-tokens 128 512 --threads 1
    python benchmarks/serving.py --profile --threads 1

Writes a Llama of 101 million random weights, and the same with half of the heads, KV heads and
neurons of every layer, and measures the two as `validate.speed` does, taking turns. Prints a
Markdown table: medians, the median ratio of pairs with its interval, and what the ratio would be if
nothing but multiplications took time. `--profile` says instead where the time of both goes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from random_llama import HALF, llama, write_checkpoint

from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import (
    Layout,
    dense_layout,
    prunable_parameters,
    total_parameters,
)
from prunec.validators.hardware import hardware
from prunec.validators.measurements import SpeedResult
from prunec.validators.speed import SpeedSettings, measure_speed


def products(facts: Facts, layout: Layout, result: SpeedResult) -> float:
    """Multiplications of a phase, for each text: weights, attention, and the head.

    Of the prompts, the head reads the last token alone.
    """
    heads = sum(spec.query_heads * spec.head_dim for spec in layout)
    weights = prunable_parameters(facts, layout)
    head = facts.vocab_size * facts.hidden_size
    prompt = result.prompt_tokens
    if result.phase == "prefill":
        return prompt * weights + heads * prompt * prompt + head
    return weights + 2 * heads * (prompt + (1 + result.new_tokens) / 2) + head


@contextmanager
def pair(facts: Facts, dtype: str) -> Iterator[tuple[Path, Path]]:
    """Folders of the dense model and of half of it, for as long as they are needed."""
    with tempfile.TemporaryDirectory() as kept:
        dense, half = Path(kept) / "dense", Path(kept) / "half"
        for folder, layout in ((dense, dense_layout(facts)), (half, (HALF,) * facts.layers)):
            write_checkpoint(folder, facts, layout, getattr(torch, dtype))
        yield dense, half


def row(facts: Facts, dtype: str, result: SpeedResult) -> str:
    what = f"| {result.runtime} | {dtype} | {result.prompt_tokens} | {result.batch} "
    what += f"| {result.phase} "
    if result.error:
        return f"{what}| {result.error} | | | | | |"
    limit = products(facts, dense_layout(facts), result)
    limit /= products(facts, (HALF,) * facts.layers, result)
    speedup = result.speedup
    return (
        f"{what}| {result.dense:,.1f} | {result.pruned:,.1f} | {1e3 * result.dense_seconds:.1f} "
        f"| {1e3 * result.pruned_seconds:.1f} | **{speedup.value:.2f}** ({speedup.low:.2f} … "
        f"{speedup.high:.2f}) | {limit:.2f} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runtime", nargs="+", choices=["vllm", "hf"], default=["vllm", "hf"])
    parser.add_argument("--dtype", nargs="+", default=["bfloat16"])
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[128])
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--pairs", type=int, default=SpeedSettings.pairs)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--clock", choices=["perf_counter", "process_time"], default="perf_counter")
    parser.add_argument("--profile", action="store_true", help="where the time goes")
    arguments = parser.parse_args()
    facts = llama(arguments.layers)
    print(", ".join(f"{name} {value}" for name, value in hardware().items()) + "\n")
    print(f"{total_parameters(facts, dense_layout(facts)):,} parameters, half: ", end="")
    print(f"{total_parameters(facts, (HALF,) * facts.layers):,}\n")
    if arguments.profile:
        import serving_profile

        for dtype in arguments.dtype:
            with pair(facts, dtype) as folders:
                serving_profile.show(folders, arguments, dtype)
        return 0
    print("| runtime | dtype | prompt | batch | phase | dense, tokens/s | half, tokens/s ", end="")
    print("| dense, ms | half, ms | ratio | limit |")
    print("| --- | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | --- | ---: |", flush=True)
    failed = False
    for dtype in arguments.dtype:
        with pair(facts, dtype) as (dense, half):
            for runtime in arguments.runtime:
                for prompt in arguments.prompt_tokens:
                    settings = SpeedSettings(
                        batch_sizes=tuple(arguments.batch),
                        prompt_tokens=prompt,
                        new_tokens=arguments.new_tokens,
                        pairs=arguments.pairs,
                        dtype=dtype,
                        threads=arguments.threads,
                        clock=arguments.clock,
                    )
                    print(f"{runtime}, {dtype}, {prompt} tokens", file=sys.stderr)
                    for result in measure_speed(runtime, dense, half, settings):
                        failed = failed or bool(result.error)
                        print(row(facts, dtype, result), flush=True)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
