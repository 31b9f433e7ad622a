# SPDX-License-Identifier: Apache-2.0
"""Measures how long sublayers of every shape take on this machine, with random weights.

Samples of all shapes are interleaved in random order, so that a machine that slows down does so for
all of them; medians are taken. A sample is a chain of layers of one shape, each with weights of its
own as far as memory allows, so that caches are as cold as in a model.
"""

from __future__ import annotations

import math
import os
import platform
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import DynamicCache

from prunec.compiler.diagnostics import Diagnostic, UserError, printable
from prunec.compiler.model.decoder import dense_config, given_to_layers, shell
from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import (
    LayerSpec,
    dense_layout,
    norm_shapes,
    projection_shapes,
    prunable_parameters,
)
from prunec.compiler.model.modeling import classes_of
from prunec.compiler.model.modeling.modeling_prunec import PerLayerDecoderLayer
from prunec.compiler.search.latency import (
    Latency,
    Times,
    attention_shapes,
    measured_sizes,
    mlp_widths,
)
from prunec.compiler.stopwatch import seconds

#: Weights that samples of one shape are spread over, in bytes: more than caches hold.
_POOL_BYTES = 256 * 1024**2
#: Layers in a chain on a GPU, where work is queued ahead and starting it can be the bottleneck.
_GPU_CHAIN = 8
_WARM_UP = 3

#: Called with (done, of) while samples are taken.
Progress = Callable[[int, int], None]
#: Prepares a sample and returns the call to be timed.
Prepare = Callable[[], Callable[[], object]]


@torch.no_grad()
def profile(
    facts: Facts,
    dtype: str,
    device: torch.device,
    *,
    batch: int,
    tokens: int,
    multiple_of: int,
    repeats: int,
    on_progress: Progress = lambda done, of: None,
) -> Latency:
    """Times of the sublayers of a model at every legal attention shape and a grid of MLP widths.

    `batch` and `tokens` as in `Latency`; `repeats` samples of each part are taken.
    """
    bench = _Bench(facts, getattr(torch, dtype), device, batch, tokens)
    shapes, widths = attention_shapes(facts), mlp_widths(facts, multiple_of)
    specs = [LayerSpec(*shape, facts.head_dim, 0) for shape in shapes]
    specs += [LayerSpec(0, 0, facts.head_dim, width) for width in widths]
    parts: dict[tuple[bool, LayerSpec | None], Prepare] = {}
    for decode in (False, True):
        parts[decode, None] = bench.model(decode)
        for spec in specs:
            parts[decode, spec] = bench.chain(spec, decode)
    samples = {part: list[float]() for part in parts}
    order = list(parts)
    for repeat in range(_WARM_UP + repeats):
        random.Random(repeat).shuffle(order)
        for number, part in enumerate(order):
            seconds = bench.time(parts[part], again=part[0]) / (bench.calls if part[1] else 1)
            if repeat >= _WARM_UP:
                samples[part].append(seconds)
            on_progress(repeat * len(order) + number + 1, (_WARM_UP + repeats) * len(order))
    medians = {part: statistics.median(values) for part, values in samples.items()}

    def times(decode: bool) -> Times:
        by_spec = {spec: medians[decode, spec] for spec in specs}
        return Times(
            medians[decode, None],
            {(spec.query_heads, spec.kv_heads): s for spec, s in by_spec.items() if spec.attention},
            {spec.ffn: seconds for spec, seconds in by_spec.items() if spec.mlp},
        )

    return Latency(
        model=measured_sizes(facts),
        dtype=dtype,
        multiple_of=multiple_of,
        machine=machine(device),
        batch=batch,
        tokens=tokens,
        spread=statistics.median(_spread(values) for values in samples.values()),
        prefill=times(False),
        decode=times(True),
    )


def find_device(name: str | None) -> torch.device:
    """A device by its name, or the best there is; UserError if there is none of that name."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises any of them
        reason = str(error).splitlines()[0].strip().rstrip(".")
        raise UserError(Diagnostic(f"--device {printable(name)} is not there: {reason}")) from None
    return device


def machine(device: torch.device) -> dict[str, Any]:
    """What a measurement was made on."""
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "hardware": hardware,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


class _Bench:
    """Parts of a model with random weights, each ready to be timed."""

    def __init__(
        self, facts: Facts, dtype: torch.dtype, device: torch.device, batch: int, tokens: int
    ) -> None:
        self.facts, self.dtype, self.device = facts, dtype, device
        self.batch, self.tokens = batch, tokens
        self.config = dense_config(facts)
        dense = dense_layout(facts)[0]
        layer_bytes = prunable_parameters(facts, [dense]) * dtype.itemsize
        copies = min(facts.layers, max(1, _POOL_BYTES // layer_bytes))
        # One dense layer a copy; every shape's weights are views of its beginning.
        self.pools = [
            {
                name: self._random(math.prod(shape))
                for name, shape in projection_shapes(facts, dense).items()
            }
            for _ in range(copies)
        ]
        self.calls = max(copies, _GPU_CHAIN) if device.type == "cuda" else copies
        self.prompt = self._random(batch, tokens, facts.hidden_size)
        self.shell = shell(facts).to(device)
        given = given_to_layers(self.shell, self.config, tokens + 1, dtype)
        self.rotations = given[0]["position_embeddings"]
        # [batch, KV heads, tokens, head_dim]: keys as well as values
        self.cached = self._random(batch, facts.kv_heads, tokens, facts.head_dim)

    def chain(self, spec: LayerSpec, decode: bool) -> Prepare:
        """Layers of one shape, one after the other."""
        layers = [self._layer(slot, spec) for slot in range(len(self.pools))]
        layers = [layers[call % len(layers)] for call in range(self.calls)]
        cos, sin = self.rotations
        rows = slice(self.tokens, None) if decode else slice(self.tokens)
        rotations = cos[:, rows], sin[:, rows]
        start = self.prompt[:, :1] if decode else self.prompt

        def prepare() -> Callable[[], object]:
            cache = DynamicCache() if decode and spec.attention else None
            if cache is not None:
                past = self.cached[:, : spec.kv_heads]
                for slot in range(len(self.pools)):
                    cache.update(past, past, slot)

            def run() -> Tensor:
                hidden = start
                for layer in layers:
                    hidden = layer(
                        hidden,
                        position_embeddings=rotations,
                        attention_mask=None,  # full windows: causal, and nothing else
                        past_key_values=cache,
                    )
                return hidden

            return run

        return prepare

    def model(self, decode: bool) -> Prepare:
        """A whole model without its layers; logits of the last position alone."""
        model = self.shell
        vocabulary = self._random(self.facts.vocab_size, self.facts.hidden_size)
        ones = torch.ones(self.facts.hidden_size, dtype=self.dtype, device=self.device)
        model.model.embed_tokens.weight = model.lm_head.weight = _frozen(vocabulary)
        model.model.norm.weight = _frozen(ones)
        length = 1 if decode else self.tokens
        ids = torch.randint(self.facts.vocab_size, (self.batch, length), device=self.device)

        def run() -> object:
            return model(ids, use_cache=decode, logits_to_keep=1)

        return lambda: run

    def time(self, prepare: Prepare, *, again: bool) -> float:
        """Seconds of one sample; `again`: of a second run, as decoding has just been through."""
        run = prepare()
        if again:
            run()
        return seconds(self.device, run)

    def _layer(self, slot: int, spec: LayerSpec) -> PerLayerDecoderLayer:
        """A layer that reads a slot of the cache, and that slot's weights."""
        with torch.device("meta"):
            layer: PerLayerDecoderLayer = classes_of(
                self.facts.family.model_type
            ).model.decoder_layer(self.config, slot, spec.query_heads, spec.kv_heads, spec.ffn)
        tensors = {
            name: self.pools[slot][name][: math.prod(shape)].view(shape)
            for name, shape in projection_shapes(self.facts, spec).items()
        }
        for name, shape in norm_shapes(self.facts, spec).items():
            tensors[name] = torch.ones(shape, dtype=self.dtype, device=self.device)
        layer.load_state_dict(tensors, strict=True, assign=True)
        layer.eval().requires_grad_(False)
        return layer

    def _random(self, *shape: int) -> Tensor:
        values = torch.empty(shape, dtype=self.dtype, device=self.device)
        return nn.init.normal_(values, std=self.facts.config.get("initializer_range", 0.02))


def _frozen(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight, requires_grad=False)


def _spread(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    first, middle, third = statistics.quantiles(values, n=4)
    return (third - first) / middle


def _processor() -> str:
    """The processor's name and how many cores this process may use."""
    name = platform.processor() or platform.machine()
    described = Path("/proc/cpuinfo")
    if described.exists():
        lines = described.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"
