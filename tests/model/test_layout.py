# SPDX-License-Identifier: Apache-2.0
"""What is counted from a layout is held against the parameters of models that torch builds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prunec.compiler.model.facts import facts_from_config
from prunec.compiler.model.layout import (
    LayerSelection,
    LayerSpec,
    Layout,
    dense_layout,
    flops_per_token,
    free_selection,
    is_uniform,
    kv_bytes_per_token,
    layout_from_plain,
    plain_layout,
    prunable_parameters,
    sparsity,
    tensor_shapes,
    total_parameters,
)
from prunec.compiler.model.modeling import classes_of
from prunec.exporters import hf

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 37,
    "hidden_size": 24,
    "intermediate_size": 41,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 10,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "gqa": {},
    "tied": {"tie_word_embeddings": True},
    "attention biases": {"attention_bias": True},
    "all biases": {"attention_bias": True, "mlp_bias": True},
    "mha, derived head_dim": {"num_key_value_heads": 6, "head_dim": None},
    "mqa": {"num_key_value_heads": 1},
}


def _is_prunable(name: str) -> bool:
    return "_proj." in name


@pytest.fixture(params=list(VARIANTS))
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return CONFIG | VARIANTS[request.param]


def test_a_dense_layout_counts_what_transformers_builds(config: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in config.items() if v is not None}))
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    facts = facts_from_config(config)
    layout = dense_layout(facts)
    assert total_parameters(facts, layout) == sum(counts.values())
    assert prunable_parameters(facts, layout) == sum(
        count for name, count in counts.items() if _is_prunable(name)
    )
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == tensor_shapes(
        facts, layout
    )
    assert sparsity(facts, layout) == 0
    assert is_uniform(layout)


def test_a_layout_of_unlike_layers_counts_what_the_shaped_model_holds(
    config: dict[str, Any],
) -> None:
    facts = facts_from_config(config)
    dim = facts.head_dim
    layout: Layout = (
        LayerSpec(facts.query_heads // facts.kv_heads, 1, dim, 0),
        LayerSpec(0, 0, dim, 7),
        LayerSpec(facts.query_heads, facts.kv_heads, dim, facts.ffn),
    )
    content = hf.model_config(facts, layout, "per_layer", torch.float32)
    with torch.device("meta"):
        ours = classes_of("llama")
        model = ours.causal_lm(ours.config.from_dict(content))
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    prunable = sum(count for name, count in counts.items() if _is_prunable(name))
    assert total_parameters(facts, layout) == sum(counts.values())
    assert prunable_parameters(facts, layout) == prunable
    whole = prunable_parameters(facts, dense_layout(facts))
    assert sparsity(facts, layout) == pytest.approx(1 - prunable / whole)
    assert not is_uniform(layout)


def test_what_a_token_costs_is_counted_from_the_heads_and_matrices_that_are_left() -> None:
    facts = facts_from_config(CONFIG)
    layout = (LayerSpec(4, 2, 10, 5), LayerSpec(0, 0, 10, 8), LayerSpec(3, 3, 10, 0))
    # Keys and values of 2 + 0 + 3 heads of 10, in two bytes each.
    assert kv_bytes_per_token(facts, layout) == 2 * 5 * 10 * 2
    assert kv_bytes_per_token(facts, layout, bytes_per_value=4) == 2 * 5 * 10 * 4
    matrices = 24 * 10 * (2 * 4 + 2 * 2) + 24 * 10 * (2 * 3 + 2 * 3) + 3 * 24 * (5 + 8) + 24 * 37
    assert flops_per_token(facts, layout) == 2 * matrices


def test_a_selection_has_the_shape_of_what_it_keeps() -> None:
    spec = LayerSelection((0, 1, 4, 5), (0, 2), (3,)).spec(10)
    assert spec == LayerSpec(4, 2, 10, 1)
    assert (spec.attention, spec.mlp, spec.queries_per_group) == (True, True, 2)
    gone = LayerSelection((), (), ()).spec(10)
    assert (gone.attention, gone.mlp, gone.queries_per_group) == (False, False, 0)
    assert gone.as_dict() == {
        "query_heads": 0,
        "kv_heads": 0,
        "head_dim": 10,
        "ffn": 0,
        "attention": False,
        "mlp": False,
    }


def test_a_kv_head_stays_as_long_as_one_of_its_query_heads_does() -> None:
    facts = facts_from_config(CONFIG)  # two query heads on each of three KV heads
    uneven = free_selection(facts, (5, 0, 1), (4, 2))
    assert uneven == LayerSelection((0, 1, 5), (0, 2), (2, 4), (2, 1))
    assert uneven.spec(10) == LayerSpec(3, 2, 10, 2, (2, 1))
    assert uneven.spec(10).as_dict()["query_groups"] == [2, 1]
    even = free_selection(facts, (0, 3), ())
    assert even == LayerSelection((0, 3), (0, 1), (), None)
    assert free_selection(facts, (), ()) == LayerSelection((), (), ())
    layout = (uneven.spec(10), even.spec(10))
    assert plain_layout(layout) == [[3, 2, 2, [2, 1]], [2, 2, 0]]
    assert layout_from_plain(plain_layout(layout), 10) == layout
    assert not is_uniform((uneven.spec(10),) * 2)
