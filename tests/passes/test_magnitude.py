# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunec.compiler.model.checkpoint import Checkpoint
from prunec.compiler.model.facts import Facts, facts_from_config
from prunec.compiler.model.folder import facts_from_folder
from prunec.compiler.model.layout import LayerSpec, norm_shapes, projection_shapes
from prunec.compiler.passes.importance.prune import prune_layer
from prunec.compiler.passes.importance.scoring import Scoring
from prunec.compiler.passes.nested import CutLayer

HEAD_DIM = 4


def _prune(facts: Facts, tensors: dict[str, torch.Tensor], spec: LayerSpec) -> CutLayer:
    """As method `magnitude` does."""
    scoring = Scoring({"magnitude_l2": 1.0})
    return prune_layer(facts, tensors, None, scoring, spec, refit=False, damping=0.01)


def _facts(query_heads: int, kv_heads: int) -> Facts:
    return facts_from_config(
        {
            "model_type": "llama",
            "hidden_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": query_heads,
            "num_key_value_heads": kv_heads,
            "head_dim": HEAD_DIM,
            "intermediate_size": 9,
            "vocab_size": 5,
        }
    )


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(4, 4), (6, 2), (6, 3), (3, 1)]),
    st.data(),
)
@settings(max_examples=25, deadline=None)
def test_the_units_of_largest_norm_stay(
    seed: int, heads: tuple[int, int], data: st.DataObject
) -> None:
    (query_heads, kv_heads), per_group = heads, heads[0] // heads[1]
    facts = _facts(query_heads, kv_heads)
    generator = torch.Generator().manual_seed(seed)
    shapes = projection_shapes(facts, LayerSpec(query_heads, kv_heads, HEAD_DIM, 9))
    tensors = {n: torch.randn(s, generator=generator).bfloat16() for n, s in shapes.items()}
    kv = data.draw(st.integers(0, kv_heads))
    queries = kv * data.draw(st.integers(1, per_group))
    spec = LayerSpec(queries, kv, HEAD_DIM, data.draw(st.integers(0, 9)))

    def energy(name: str, unit: int, size: int) -> float:
        weight = tensors[f"{name}.weight"].double()
        block = slice(unit * size, (unit + 1) * size)
        part = weight[:, block] if name.endswith(("o_proj", "down_proj")) else weight[block]
        return sum(float(value) ** 2 for value in part.flatten())

    def head(h: int) -> float:
        return sum(energy(f"self_attn.{name}", h, HEAD_DIM) for name in ("q_proj", "o_proj"))

    def group(g: int) -> float:
        own = sum(energy(f"self_attn.{name}", g, HEAD_DIM) for name in ("k_proj", "v_proj"))
        return own + sum(head(h) for h in range(g * per_group, (g + 1) * per_group))

    def neuron(n: int) -> float:
        return sum(energy(f"mlp.{name}", n, 1) for name in ("gate_proj", "up_proj", "down_proj"))

    def largest(units: range, count: int, score: Callable[[int], float]) -> tuple[int, ...]:
        return tuple(sorted(sorted(units, key=score, reverse=True)[:count]))

    selection = _prune(facts, tensors, spec).selection

    groups = largest(range(kv_heads), kv, group)
    assert selection.kv_heads == groups
    assert selection.query_heads == tuple(
        h
        for g in groups
        for h in largest(range(g * per_group, (g + 1) * per_group), spec.queries_per_group, head)
    )
    assert selection.neurons == largest(range(9), spec.ffn, neuron)


@pytest.mark.parametrize("shape", [(4, 2, 96), (2, 2, 33), (2, 1, 0), (0, 0, 7), (0, 0, 0)])
def test_no_weight_that_stays_is_changed(
    tiny_llama: Callable[..., Path], shape: tuple[int, int, int]
) -> None:
    folder = tiny_llama(biased=True, dtype="bfloat16")
    facts = facts_from_folder(folder)
    tensors = Checkpoint(folder, facts).layer(1)
    spec = LayerSpec(shape[0], shape[1], 16, shape[2])
    cut = _prune(facts, tensors, spec)
    expected = projection_shapes(facts, spec) | norm_shapes(facts, spec)
    assert {name: tuple(tensor.shape) for name, tensor in cut.tensors.items()} == expected
    for name, tensor in cut.tensors.items():
        old = {bytes(row.view(torch.uint8).numpy()) for row in _units(name, tensors[name])}
        new = [bytes(row.view(torch.uint8).numpy()) for row in _units(name, tensor)]
        assert tensor.dtype == torch.bfloat16
        assert name.startswith(("self_attn.o_proj.w", "mlp.down_proj.w")) or old.issuperset(new)
    assert cut.selection.spec(16) == spec
    json.dumps(cut.selection.neurons)  # plain ints, as the store writes them


def _units(name: str, tensor: torch.Tensor) -> list[torch.Tensor]:
    return [row.reshape(-1).contiguous() for row in tensor]
