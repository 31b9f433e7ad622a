# SPDX-License-Identifier: Apache-2.0
"""Every family in both layouts, and every form in which its config.json is published: what is
exported computes what the masked dense model computes, and generates as any other model does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from prunec.compiler.model.checkpoint import Checkpoint
from prunec.compiler.model.families import FAMILIES
from prunec.compiler.model.folder import facts_from_folder
from prunec.compiler.model.layout import LayerSelection, prunable_parameters
from prunec.compiler.model.surgery import head_rows, slice_layer
from prunec.exporters import hf
from prunec.exporters.artefact import Provenance
from prunec.exporters.hf_rules import LayoutKind, attention_is_legal
from tests.published_configs import PUBLISHED

MakeModel = Callable[..., Path]

PROVENANCE = Provenance("method: {kind: tyr}\n", {}, "examples/dense", "tyr", "no text")
TOKENS = torch.arange(3, 99).reshape(4, 24)


def selection(query_heads: tuple[int, ...], neurons: range) -> LayerSelection:
    """Of four query heads on two KV heads."""
    return LayerSelection(query_heads, tuple(sorted({q // 2 for q in query_heads})), tuple(neurons))


EVERY = (0, 1, 2, 3)
# Layer 0 without attention, 2 without MLP, 3 empty; the others thinner in one way or another.
PER_LAYER = (
    selection((), range(0, 96, 3)),
    selection((1, 2), range(7)),
    selection((2, 3), range(0)),
    selection((), range(0)),
    selection(EVERY, range(1, 96)),
)
UNIFORM = tuple(selection((q, 3 - q), range(q, 96, 3)) for q in (0, 1, 0, 1, 1))


@pytest.fixture(scope="module", params=[*FAMILIES, *PUBLISHED])
def dense(
    request: pytest.FixtureRequest, tiny_family: MakeModel, published_model: Callable[[str], Path]
) -> Path:
    if request.param in PUBLISHED:
        return published_model(request.param)
    return tiny_family(request.param, layers=5)


@pytest.fixture(scope="module", params=["per_layer", "uniform"])
def layout_kind(request: pytest.FixtureRequest) -> LayoutKind:
    kind: LayoutKind = request.param
    return kind


@pytest.fixture(scope="module")
def selections(dense: Path, layout_kind: LayoutKind) -> tuple[LayerSelection, ...]:
    """What the layout allows of the selections above."""
    facts = facts_from_folder(dense)
    wanted = PER_LAYER if layout_kind == "per_layer" else UNIFORM
    legal = attention_is_legal(facts, layout_kind, 2, 2)
    kept = tuple(
        each
        if legal or not each.query_heads
        else selection(EVERY, range(96)[each.neurons[0] :: 3])
        if layout_kind == "uniform"
        else LayerSelection(EVERY, (0, 1), each.neurons)
        for each in wanted
    )
    if facts.kv_heads == facts.query_heads:  # a KV head of its own for every query head
        return tuple(replace(each, kv_heads=each.query_heads) for each in kept)
    return kept


@pytest.fixture(scope="module")
def written(
    dense: Path,
    layout_kind: LayoutKind,
    selections: tuple[LayerSelection, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    facts = facts_from_folder(dense)
    folder = tmp_path_factory.mktemp("written")
    layout = tuple(each.spec(facts.head_dim) for each in selections)
    tensors = _pruned(dense, selections)
    args = (folder, dense, facts, layout, layout_kind, tensors, torch.float32, 1 << 30, PROVENANCE)
    hf.export(*args)
    found = hf.verify(folder, layout, facts)
    assert found.prunable_parameters == prunable_parameters(facts, layout)
    return folder


def _pruned(source: Path, selections: tuple[LayerSelection, ...]) -> Iterator[tuple[str, Tensor]]:
    facts = facts_from_folder(source)
    checkpoint, family = Checkpoint(source, facts), facts.family
    yield family.embedding, checkpoint.tensor(family.embedding)
    for index, kept in enumerate(selections):
        for name, tensor in slice_layer(facts, checkpoint.layer(index), kept).items():
            yield family.in_layer(index, name), tensor
    yield family.final_norm, checkpoint.tensor(family.final_norm)
    if not facts.tied:
        yield family.head, checkpoint.tensor(family.head)


def masked(dense: Path, selections: tuple[LayerSelection, ...]) -> Any:
    """The dense model in which nothing reads the units that go."""
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32).eval()
    for layer, kept in zip(model.model.layers, selections, strict=True):
        output, down = layer.self_attn.o_proj, layer.mlp.down_proj
        attended, neurons = torch.zeros(output.in_features), torch.zeros(down.in_features)
        attended[head_rows(kept.query_heads, layer.self_attn.head_dim)] = 1
        neurons[list(kept.neurons)] = 1
        output.weight.data *= attended
        down.weight.data *= neurons
    return model


def test_the_artefact_computes_what_the_masked_model_computes(
    dense: Path, selections: tuple[LayerSelection, ...], written: Path
) -> None:
    expected, found = masked(dense, selections), AutoModelForCausalLM.from_pretrained(written)
    with torch.no_grad():
        torch.testing.assert_close(found(TOKENS).logits, expected(TOKENS).logits, atol=5e-5, rtol=0)


def test_the_artefact_generates_as_it_would_without_a_cache_and_without_padding(
    written: Path,
) -> None:
    model = AutoModelForCausalLM.from_pretrained(written).eval()
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    prompt = TOKENS[:1, :11]
    plain = model.generate(prompt, use_cache=False, **options)
    assert torch.equal(model.generate(prompt, **options), plain)
    padded = torch.cat([torch.zeros(1, 9, dtype=torch.long), prompt], dim=1)
    beside = torch.cat([padded, TOKENS[1:2, :20]])
    mask = torch.ones_like(beside)
    mask[0, :9] = 0
    batch = model.generate(beside, attention_mask=mask, **options)
    assert torch.equal(batch[:1, 9:], plain)
    beams = model.generate(prompt, num_beams=3, **options)
    assert torch.equal(model.generate(prompt, num_beams=3, use_cache=False, **options), beams)


def test_what_transformers_saves_of_an_artefact_is_the_artefact(
    written: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(written)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    first, second = AutoConfig.from_pretrained(written), AutoConfig.from_pretrained(tmp_path)
    assert second.to_dict() == first.to_dict() | {"_name_or_path": second.name_or_path}
    with torch.no_grad():
        assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_what_a_config_leaves_out_is_what_transformers_takes(model_type: str) -> None:
    config = AutoConfig.for_model(model_type)
    for key, value in FAMILIES[model_type].defaults.items():
        assert getattr(config, key) == value
