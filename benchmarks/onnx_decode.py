# SPDX-License-Identifier: Apache-2.0
"""How fast ONNX Runtime decodes: half a model beside the whole, ways to attend side by side.

    python benchmarks/onnx_decode.py
    python benchmarks/onnx_decode.py --attention --layers 4

Writes ONNX graphs of Llamas with random weights as the exporter does, dense and pruned uniformly to
half of their units, and times steps of decoding behind pasts of several lengths, the graphs taking
turns. `--attention` compares what attention is written as instead: ONNX's Attention, as exported;
plain operators; ONNX Runtime's own GroupQueryAttention. Prints a Markdown table: medians, with the
quartiles, and ratios of medians to the dense graph of the same precision, or to the exported way.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx_attention import WAYS
from random_llama import HALF, llama
from torch import Tensor
from transformers import AutoConfig

from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import (
    Layout,
    dense_layout,
    tensor_shapes,
    total_parameters,
)
from prunec.exporters.hf import model_config
from prunec.exporters.onnx_graph import trace
from prunec.exporters.onnx_rules import BITS, Precision
from prunec.exporters.onnx_weights import GRAPH, write_model

WARM_UP = 2


def write(folder: Path, facts: Facts, layout: Layout, precision: Precision) -> None:
    """A graph and random weights for it."""
    folder.mkdir()
    dtype = torch.float16 if precision == "float16" else torch.float32
    said = model_config(facts, layout, "uniform", dtype)
    config = AutoConfig.for_model(said.pop("model_type"), **said)
    draw = torch.Generator().manual_seed(0)

    def drawn(shape: tuple[int, ...]) -> Tensor:
        noise: Tensor = torch.randn(shape, generator=draw) / math.sqrt(shape[-1])
        return noise

    tensors = ((name, drawn(shape)) for name, shape in tensor_shapes(facts, layout).items())
    write_model(trace(config, layout, dtype), folder, tensors, dtype, BITS.get(precision))


class Decoder:
    """A graph that is asked for one token after `past` others."""

    def __init__(self, folder: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            folder / GRAPH, options, providers=["CPUExecutionProvider"]
        )

    def feed(self, past: int) -> dict[str, NDArray[Any]]:
        draw = np.random.default_rng(0)
        given: dict[str, NDArray[Any]] = {
            "input_ids": np.array([[7]]),
            "attention_mask": np.ones((1, past + 1), np.int64),
            "position_ids": np.array([[past]]),
        }
        for value in self.session.get_inputs():
            if value.name.startswith("past_key_values"):
                kind = np.float16 if value.type == "tensor(float16)" else np.float32
                shape = (1, value.shape[1], past, value.shape[3])
                given[value.name] = draw.standard_normal(shape).astype(kind)
        return given

    def seconds(self, given: dict[str, NDArray[Any]], steps: int) -> tuple[float, float]:
        """Of one step, by the clock and by CPU time."""
        clock, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            self.session.run(None, given)
        return (time.perf_counter() - clock) / steps, (time.process_time() - cpu) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--precision", nargs="+", choices=["float32", "int8", "int4"])
    parser.add_argument("--past", type=int, nargs="+", default=[16, 512])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--steps", type=int, default=4, help="of decoding in a turn")
    parser.add_argument("--attention", action="store_true", help="compare ways to attend")
    arguments = parser.parse_args()
    facts = llama(arguments.layers)
    dense = dense_layout(facts)
    half = (HALF,) * facts.layers
    with tempfile.TemporaryDirectory() as kept:
        decoders: dict[str, Decoder] = {}

        def add(name: str, layout: Layout, precision: Precision) -> None:
            folder = Path(kept) / name.replace(" ", "-")
            write(folder, facts, layout, precision)
            decoders[name] = Decoder(folder, arguments.threads)

        if arguments.attention:
            for name, way in WAYS.items():
                with way():
                    add(name, dense, "float32")
        else:
            for precision in arguments.precision or ["float32"]:
                add(f"dense, {precision}", dense, precision)
                add(f"half, {precision}", half, precision)
            print(f"{total_parameters(facts, dense):,} parameters, half: ", end="")
            print(f"{total_parameters(facts, half):,}; {arguments.threads} thread(s)\n")
        first = next(iter(decoders))
        bases = {
            name: first if arguments.attention else name.replace("half", "dense")
            for name in decoders
        }
        compare(decoders, bases, arguments.past, arguments.turns, arguments.steps)


def compare(
    decoders: dict[str, Decoder], bases: dict[str, str], pasts: list[int], turns: int, steps: int
) -> None:
    """Prints the table; `bases` says which decoder the ratios of each are to."""
    print("| past | graph | tokens/s | quartiles | ratio | per CPU second | quartiles | ratio |")
    print("| ---: | --- | ---: | --- | ---: | ---: | --- | ---: |")
    for past in pasts:
        given = {name: decoder.feed(past) for name, decoder in decoders.items()}
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in decoders}
        for turn in range(WARM_UP + turns):
            for name, decoder in decoders.items():
                seconds = decoder.seconds(given[name], steps)
                if turn >= WARM_UP:
                    taken[name].append(seconds)
        for name, samples in taken.items():
            cells = [speed(samples, taken[bases[name]], which) for which in (0, 1)]
            print(f"| {past} | {name} | {' | '.join(cells)} |")


def speed(samples: list[tuple[float, float]], base: list[tuple[float, float]], which: int) -> str:
    rates = [1 / sample[which] for sample in samples]
    low, middle, high = statistics.quantiles(rates, n=4)
    ratio = middle / statistics.median(1 / sample[which] for sample in base)
    return f"{middle:.1f} | {low:.1f} … {high:.1f} | {ratio:.2f}"


if __name__ == "__main__":
    main()
