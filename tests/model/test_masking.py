# SPDX-License-Identifier: Apache-2.0
"""A shrunk model computes what the dense one does when nothing reads the units that are gone.

Every family is tried: a new one has only to be in the list of families.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from prunec.compiler.model.facts import Facts, facts_from_config
from prunec.compiler.model.families import FAMILIES
from prunec.compiler.model.layout import LayerSelection, tensor_shapes
from prunec.compiler.model.surgery import slice_layer
from prunec.exporters import hf

Selections = list[LayerSelection]


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, Any], Selections]:
    """Sizes of a dense model, and which units stay in each of its layers."""
    kv_heads, per_group = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    query_heads, ffn = kv_heads * per_group, draw(st.integers(1, 13))
    sizes = {
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": query_heads,
        "num_key_value_heads": kv_heads,
        "head_dim": draw(st.sampled_from([2, 4, 6])),
        "hidden_size": query_heads * draw(st.sampled_from([2, 6])),
        "intermediate_size": ffn,
        "vocab_size": 19,
        "max_position_embeddings": 64,
        "tie_word_embeddings": draw(st.booleans()),
        "attention_bias": draw(st.booleans()),
        "mlp_bias": draw(st.booleans()),
    }
    return sizes, [
        draw(_selections(kv_heads, per_group, ffn)) for _ in range(sizes["num_hidden_layers"])
    ]


@st.composite
def _selections(draw: st.DrawFn, kv_heads: int, per_group: int, ffn: int) -> LayerSelection:
    """Whole groups, equally many query heads of each, neurons; each sublayer may go whole."""
    groups = _some(draw, kv_heads, draw(st.integers(0, kv_heads)))
    left = draw(st.integers(1, per_group))
    queries = [g * per_group + h for g in groups for h in _some(draw, per_group, left)]
    neurons = _some(draw, ffn, draw(st.integers(0, ffn)))
    return LayerSelection(tuple(queries), tuple(groups), tuple(neurons))


def _some(draw: st.DrawFn, of: int, count: int) -> list[int]:
    return sorted(draw(st.permutations(range(of)))[:count])


@pytest.mark.parametrize("model_type", FAMILIES)
@given(cases(), st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_a_shrunk_model_has_the_logits_of_the_dense_one_with_the_same_units_masked(
    model_type: str, case: tuple[dict[str, Any], Selections], seed: int
) -> None:
    sizes, selections = case
    config = AutoConfig.for_model(model_type, **sizes, pad_token_id=0)
    torch.manual_seed(seed)
    dense = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    with torch.no_grad():
        for name, parameter in dense.named_parameters():
            # Norms and biases too, so that one that is lost or misplaced shows.
            nn.init.normal_(parameter, std=0.5).add_("norm" in name)
    facts = facts_from_config(config.to_dict())
    if not facts.family.heads_are_units:
        selections = [_with_all_heads_or_none(selection, facts) for selection in selections]
    shrunk = _shrunk(facts, dense.state_dict(), selections)
    ids = torch.randint(sizes["vocab_size"], (2, 9))

    with torch.no_grad():
        before = dense(ids).logits
        _mask(dense, facts, selections)
        masked, logits = dense(ids).logits, shrunk(ids).logits

    # transformers' norms are float32 inside; the rest is float64.
    torch.testing.assert_close(logits, masked, rtol=0, atol=1e-6 * masked.abs().max().item())
    assert selections == [_all_units(facts)] * facts.layers or not torch.equal(before, masked)


def _shrunk(facts: Facts, tensors: Mapping[str, Tensor], selections: Selections) -> nn.Module:
    """The exported model, from the dense one's tensors."""
    layout = tuple(selection.spec(facts.head_dim) for selection in selections)
    written = hf.model_config(facts, layout, "per_layer", torch.float64)
    model: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model(**written))
    kept: dict[str, Tensor] = {}
    for index, selection in enumerate(selections):
        prefix = facts.family.in_layer(index, "")
        layer = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        sliced = slice_layer(facts, layer, selection)
        kept |= {prefix + name: tensor for name, tensor in sliced.items()}
    outside = tensor_shapes(facts, ())
    kept |= {name: tensors[name] for name in outside}
    missing, unexpected = model.double().load_state_dict(kept, strict=False)
    assert not unexpected
    assert missing == ([facts.family.head] if facts.tied else [])
    return model.eval()


def _mask(model: nn.Module, facts: Facts, selections: Selections) -> None:
    """Hide the outputs of lost units from what reads them, and silence absent sublayers."""
    for index, selection in enumerate(selections):
        attended = torch.zeros(facts.query_heads, facts.head_dim, dtype=torch.float64)
        attended[list(selection.query_heads)] = 1
        neurons = torch.zeros(facts.ffn, dtype=torch.float64)
        neurons[list(selection.neurons)] = 1
        for name, mask in ((facts.family.output, attended.flatten()), (facts.family.down, neurons)):
            reader = model.get_submodule(facts.family.in_layer(index, name))
            reader.register_forward_pre_hook(lambda _, inputs, mask=mask: (inputs[0] * mask,))
            if not mask.any():  # its bias goes too
                reader.register_forward_hook(lambda _, inputs, output: torch.zeros_like(output))


def _with_all_heads_or_none(selection: LayerSelection, facts: Facts) -> LayerSelection:
    everything = _all_units(facts)
    heads = (everything.query_heads, everything.kv_heads) if selection.kv_heads else ((), ())
    return LayerSelection(*heads, selection.neurons)


def _all_units(facts: Facts) -> LayerSelection:
    return LayerSelection(
        tuple(range(facts.query_heads)), tuple(range(facts.kv_heads)), tuple(range(facts.ffn))
    )
