# SPDX-License-Identifier: Apache-2.0
"""The decoder in pieces is held against transformers' own models, dense and with units masked."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from prunec.compiler.model.checkpoint import Checkpoint
from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.families import FAMILIES
from prunec.compiler.model.folder import facts_from_folder
from prunec.compiler.model.layout import LayerSelection, dense_layout
from prunec.compiler.model.placement import Placement
from prunec.compiler.model.surgery import slice_layer
from tests.published_configs import PUBLISHED

SMALL = {"layers": 3, "hidden": 32, "head_dim": 8, "ffn": 24}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "gqa": {},
    "tied": {"tied": True},
    "biased": {"biased": True},
    "mha": {"kv_heads": 4},
    "mqa": {"kv_heads": 1},
    "one head": {"query_heads": 1, "kv_heads": 1},
    "heads narrower than hidden": {"head_dim": 4},
    "bf16 weights": {"dtype": "bfloat16"},
    "yarn": {"rope_parameters": YARN, "max_position_embeddings": 16},
    "dynamic": {"rope_parameters": DYNAMIC, "max_position_embeddings": 16},
    "gelu and a large epsilon": {"hidden_act": "gelu", "rms_norm_eps": 0.1},
}


@pytest.fixture(autouse=True, params=[int(os.environ["PRUNEC_TEST_SEED"])], ids="seed {}".format)
def _fresh_numbers(request: pytest.FixtureRequest) -> None:
    torch.manual_seed(request.param)


def _open(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Decoder, Any]:
    checkpoint = Checkpoint(folder, facts_from_folder(folder))
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    if getattr(reference.config, "attn_logit_softcapping", None):
        reference.set_attn_implementation("eager")  # the only one that caps
    return Decoder(checkpoint, dtype, torch.device("cpu")), reference


def _ids(windows: int = 5, length: int = 23) -> Tensor:
    return torch.randint(0, 300, (windows, length))


@torch.no_grad()
def _logits(decoder: Decoder, ids: Tensor, layers: list[Any]) -> Tensor:
    hidden = decoder.embed(ids)
    for layer in layers:
        hidden = decoder.feed(layer, decoder.attend(layer, hidden))
    return decoder.logits(hidden)


def _dense_layers(decoder: Decoder) -> list[Any]:
    layout = dense_layout(decoder.facts)
    return [decoder.layer(i, spec, decoder.layer_tensors(i)) for i, spec in enumerate(layout)]


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == torch.float32
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual, expected.float(), rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_dense_layers_give_the_logits_of_transformers(
    tiny_llama: Callable[..., Path], options: dict[str, Any]
) -> None:
    decoder, reference = _open(tiny_llama(**SMALL | options))
    layers = _dense_layers(decoder)
    for length in (23, 1, 16):
        ids = _ids(length=length)
        with torch.no_grad():
            expected = reference(ids).logits
        assert_close(_logits(decoder, ids, layers), expected)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_gives_the_logits_of_transformers(
    tiny_family: Callable[..., Path], model_type: str
) -> None:
    decoder, reference = _open(tiny_family(model_type, layers=5))
    ids = _ids()  # longer than the windows of sliding layers
    with torch.no_grad():
        expected = reference(ids).logits
    assert_close(_logits(decoder, ids, _dense_layers(decoder)), expected)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_config_gives_the_logits_of_transformers(
    published_model: Callable[[str], Path], name: str
) -> None:
    decoder, reference = _open(published_model(name))
    # Below and beyond what long rope factors begin at, and beyond the windows of sliding layers.
    for length in (23, 80):
        ids = _ids(length=length)
        with torch.no_grad():
            expected = reference(ids).logits
        assert_close(_logits(decoder, ids, _dense_layers(decoder)), expected)


@pytest.mark.parametrize("name", PUBLISHED)
def test_heads_of_every_published_config_can_be_cut(
    published_model: Callable[[str], Path], name: str
) -> None:
    """One query head of each KV head goes, or all of a layer's attention where none can go."""
    decoder, reference = _open(published_model(name))
    facts, layers = decoder.facts, []
    per_group = facts.query_heads // facts.kv_heads
    for index in range(facts.layers):
        heads = range(facts.query_heads)
        if per_group > 1 and facts.family.heads_are_units:
            queries = [head for head in heads if head % per_group]
            groups = range(facts.kv_heads)
        else:
            groups = range(facts.kv_heads if index else 0)
            if facts.family.heads_are_units:
                groups = range(1, facts.kv_heads)
            queries = [head for head in heads if head // per_group in groups]
        kept = LayerSelection(tuple(queries), tuple(groups), tuple(range(facts.ffn)))
        tensors = slice_layer(facts, decoder.layer_tensors(index), kept)
        layers.append(decoder.layer(index, kept.spec(facts.head_dim), tensors))
        _mask(reference.model.layers[index], kept, facts.head_dim)
    ids = _ids(length=23)
    with torch.no_grad():
        expected = reference(ids).logits
    assert_close(_logits(decoder, ids, layers), expected)


def test_a_config_whose_masks_cannot_be_made_is_refused_in_a_sentence(
    published_model: Callable[..., Path],
) -> None:
    folder = published_model("Qwen2.5, today")
    facts = facts_from_folder(folder)
    slides = {**facts.config, "layer_types": ["full_attention"] * 4 + ["sliding_attention"]}
    checkpoint = Checkpoint(folder, replace(facts, config=slides))
    with pytest.raises(ModelError, match=r"config\.json makes no model: "):
        Decoder(checkpoint, torch.float32, torch.device("cpu"))


def test_a_bf16_forward_pass_is_the_one_of_transformers(tiny_llama: Callable[..., Path]) -> None:
    decoder, reference = _open(tiny_llama(**SMALL, dtype="bfloat16"), torch.bfloat16)
    ids = _ids()
    with torch.no_grad():
        expected = reference(ids).logits
    assert torch.equal(_logits(decoder, ids, _dense_layers(decoder)), expected.float())


@pytest.mark.parametrize("options", [{}, {"biased": True}, {"kv_heads": 4}, {"kv_heads": 1}])
def test_cut_layers_give_the_logits_of_a_model_with_the_lost_units_masked(
    tiny_llama: Callable[..., Path], options: dict[str, Any]
) -> None:
    decoder, reference = _open(tiny_llama(**SMALL | options))
    facts = decoder.facts

    def some(of: int, count: int) -> list[int]:
        return sorted(torch.randperm(of)[:count].tolist())

    def up_to(most: int) -> int:
        return int(torch.randint(0, most + 1, ()))

    per_group, layers = facts.query_heads // facts.kv_heads, []
    for index in range(facts.layers):
        # The second layer has no attention, the last no MLP.
        groups = some(facts.kv_heads, 0 if index == 1 else 1 + up_to(facts.kv_heads - 1))
        count = 1 + up_to(per_group - 1)
        queries = [g * per_group + h for g in groups for h in some(per_group, count)]
        neurons = some(facts.ffn, 0 if index == 2 else 1 + up_to(facts.ffn - 1))
        selection = LayerSelection(tuple(queries), tuple(groups), tuple(neurons))
        tensors = slice_layer(facts, decoder.layer_tensors(index), selection)
        layers.append(decoder.layer(index, selection.spec(facts.head_dim), tensors))
        _mask(reference.model.layers[index], selection, facts.head_dim)

    ids = _ids()
    with torch.no_grad():
        expected = reference(ids).logits
    assert_close(_logits(decoder, ids, layers), expected)


@torch.no_grad()
def _mask(layer: Any, selection: LayerSelection, head_dim: int) -> None:
    """Zero the columns that lost units feed; an absent sublayer leaves no bias either."""
    heads = torch.zeros(layer.self_attn.o_proj.in_features // head_dim)
    heads[list(selection.query_heads)] = 1
    layer.self_attn.o_proj.weight *= heads.repeat_interleave(head_dim)
    neurons = torch.zeros(layer.mlp.down_proj.in_features)
    neurons[list(selection.neurons)] = 1
    layer.mlp.down_proj.weight *= neurons
    for units, last in (
        (selection.kv_heads, layer.self_attn.o_proj),
        (selection.neurons, layer.mlp.down_proj),
    ):
        if not units and last.bias is not None:
            last.bias.zero_()


def test_batches_cover_all_windows_once_and_no_more_tokens_than_asked(
    tiny_llama: Callable[..., Path],
) -> None:
    dense, _ = _open(tiny_llama(**SMALL))
    decoder = Decoder(dense.checkpoint, dense.dtype, dense.device, Placement(batch_tokens=50))
    for windows, length in [(1, 7), (7, 7), (8, 7), (15, 7), (3, 50), (3, 51), (2, 400)]:
        batches = list(decoder.batches(windows, length))
        assert [w for batch in batches for w in range(windows)[batch]] == list(range(windows))
        assert all((b.stop - b.start) * length <= max(50, length) for b in batches)


def test_a_layer_refuses_tensors_of_another_shape(tiny_llama: Callable[..., Path]) -> None:
    decoder, _ = _open(tiny_llama(**SMALL))
    spec = LayerSelection((0, 1), (0,), (1, 2)).spec(8)
    with pytest.raises(RuntimeError, match="size mismatch"):
        decoder.layer(0, spec, decoder.layer_tensors(0))
