# SPDX-License-Identifier: Apache-2.0
"""Exports of a tiny model in layouts of all kinds, and the masked dense model as their oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from prunec.compiler.model.checkpoint import Checkpoint
from prunec.compiler.model.facts import Facts, facts_from_config
from prunec.compiler.model.folder import facts_from_folder
from prunec.compiler.model.layout import LayerSelection, Layout, free_selection
from prunec.compiler.model.surgery import head_rows, slice_layer
from prunec.exporters import hf
from prunec.exporters.artefact import Provenance, Written

MakeLlama = Callable[..., Path]
RECIPE = "# a recipe with ``` in it\r\nmodel: {source: dense}\n"
PROVENANCE = Provenance(
    recipe_text=RECIPE,
    plan={"steps": ["gram", "shrink"]},
    source="examples/dense",
    method="tyr",
    calibration="2,048 tokens of nothing much, seed 0",
)
TOKENS = torch.arange(3, 99).reshape(4, 24)


def selection(query_heads: dict[int, list[int]], neurons: list[int]) -> LayerSelection:
    """A layer that keeps, for each KV head in `query_heads`, those of its query heads."""
    kept = sorted(head for heads in query_heads.values() for head in heads)
    return LayerSelection(tuple(kept), tuple(sorted(query_heads)), tuple(sorted(neurons)))


FREE = facts_from_config(
    {
        "model_type": "llama",
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
)


# 4 query heads on 2 KV heads, 96 neurons. Layer 0 without attention, 2 without MLP, 3 empty.
PER_LAYER = (
    selection({}, list(range(0, 96, 3))),
    selection({0: [1], 1: [2]}, list(range(7))),
    selection({1: [2, 3]}, []),
    selection({}, []),
    selection({0: [0, 1], 1: [2, 3]}, list(range(95))),
)


# Query heads unevenly on their KV heads, and one KV head that only they left.
UNEVEN = (
    free_selection(FREE, (0, 1, 3), range(96)),
    free_selection(FREE, (2, 3), range(5, 60)),
    free_selection(FREE, (0, 2, 3), ()),
    free_selection(FREE, (), range(3)),
    free_selection(FREE, (0,), range(96)),
)
UNIFORM = (
    selection({0: [1], 1: [2]}, list(range(0, 96, 3))),
    selection({0: [0], 1: [3]}, list(range(32))),
    selection({0: [0], 1: [2]}, list(range(64, 96))),
)


def layout_of(facts: Facts, selections: tuple[LayerSelection, ...]) -> Layout:
    return tuple(each.spec(facts.head_dim) for each in selections)


def pruned_tensors(
    source: Path, facts: Facts, selections: tuple[LayerSelection, ...]
) -> Iterator[tuple[str, Tensor]]:
    checkpoint = Checkpoint(source, facts)
    yield facts.family.embedding, checkpoint.tensor(facts.family.embedding)
    for index, kept in enumerate(selections):
        for name, tensor in slice_layer(facts, checkpoint.layer(index), kept).items():
            yield facts.family.in_layer(index, name), tensor
    yield facts.family.final_norm, checkpoint.tensor(facts.family.final_norm)
    if not facts.tied:
        yield facts.family.head, checkpoint.tensor(facts.family.head)


def exported(
    destination: Path,
    source: Path,
    selections: tuple[LayerSelection, ...],
    layout_kind: Any,
    dtype: torch.dtype = torch.float32,
    max_shard_bytes: int = 1 << 30,
) -> Written:
    destination.mkdir(parents=True)
    facts = facts_from_folder(source)
    layout = layout_of(facts, selections)
    tensors = pruned_tensors(source, facts, selections)
    hf.export(
        destination, source, facts, layout, layout_kind, tensors, dtype, max_shard_bytes, PROVENANCE
    )
    return hf.verify(destination, layout, facts)


def masked_dense(source: Path, selections: tuple[LayerSelection, ...]) -> Any:
    """The dense model with whatever goes zeroed: an oracle that shares no code with the export."""
    model = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    for layer, kept in zip(model.model.layers, selections, strict=True):
        head_dim = model.config.head_dim
        attended = torch.zeros(layer.self_attn.o_proj.in_features)
        attended[head_rows(kept.query_heads, head_dim)] = 1
        neurons = torch.zeros(layer.mlp.down_proj.in_features)
        neurons[list(kept.neurons)] = 1
        for linear, mask in ((layer.self_attn.o_proj, attended), (layer.mlp.down_proj, neurons)):
            linear.weight.data *= mask
            if not mask.any() and linear.bias is not None:  # an absent sublayer has no bias
                linear.bias.data.zero_()
    return model


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(TOKENS).logits
    return output


@pytest.fixture(scope="session")
def per_layer(tiny_llama: MakeLlama, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dense model and its per-layer export."""
    source = tiny_llama(layers=5)
    folder = tmp_path_factory.mktemp("exported") / "hf"
    exported(folder, source, PER_LAYER, "per_layer")
    return source, folder


@pytest.fixture(scope="session")
def uneven(tiny_llama: MakeLlama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the same dense model whose query heads lie unevenly on their KV heads."""
    folder = tmp_path_factory.mktemp("uneven") / "hf"
    exported(folder, tiny_llama(layers=5), UNEVEN, "per_layer")
    return folder
