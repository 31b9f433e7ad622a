# SPDX-License-Identifier: Apache-2.0
"""Budgets of all kinds, what candidates cost counted from their tensors, and what is legal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from prunec.compiler.model.facts import Facts, facts_from_config
from prunec.compiler.model.layout import tensor_shapes
from prunec.compiler.search.budget import Budget, Candidate, Ceiling
from prunec.compiler.search.latency import Times, attention_shapes, mlp_widths
from prunec.compiler.search.price import (
    Price,
    kv_price,
    latency_price,
    parameter_price,
    weight_price,
)

SPARSITIES = st.sampled_from([0.01, 0.1, 0.25, 0.375, 0.5, 0.7, 0.9])
HEADS = st.sampled_from([(4, 4), (4, 2), (4, 1), (8, 4), (12, 4), (12, 3), (1, 1)])


def facts_of(**changes: Any) -> Facts:
    config = {
        "model_type": "llama",
        "vocab_size": 100,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 8,
    }
    return facts_from_config(config | changes)


KINDS = ["parameters", "weights", "kv", "latency"]
ROUNDING = 1e-12  # of sums of milliseconds; all other costs are whole numbers


@st.composite
def all_facts(draw: st.DrawFn) -> Facts:
    heads, kv_heads = draw(HEADS)
    return facts_of(
        hidden_size=draw(st.sampled_from([24, 96])),
        intermediate_size=draw(st.sampled_from([80, 97, 160, 173])),
        num_hidden_layers=draw(st.integers(1, 5)),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=draw(st.sampled_from([2, 8, 16])),
        attention_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
        tie_word_embeddings=draw(st.booleans()),
    )


@st.composite
def budgets(draw: st.DrawFn) -> Budget:
    facts = draw(all_facts())
    tied, multiple = draw(st.booleans()), draw(st.sampled_from([1, 8, 16, 24]))
    return Budget(facts, draw(SPARSITIES), multiple, tied, rules_of(facts, tied))


@st.composite
def ceilings(draw: st.DrawFn) -> Budget:
    """Budgets of all kinds that may not be exceeded, from almost nothing to almost everything."""
    facts = draw(all_facts())
    tied, multiple = draw(st.booleans()), draw(st.sampled_from([1, 8, 16, 24]))
    price = price_of(draw(st.sampled_from(KINDS)), facts)
    ceiling = ceiling_of(facts, price, draw(st.floats(0.001, 0.999)))
    return Budget(facts, ceiling, multiple, tied, rules_of(facts, tied))


def price_of(kind: str, facts: Facts) -> Price:
    match kind:
        case "parameters":
            return parameter_price(facts)
        case "weights":
            return weight_price(facts, 2)
        case "kv":
            return kv_price(facts, 4)
    return latency_price(_times(facts))


def _times(facts: Facts) -> Times:
    """A machine on which starting a sublayer costs as much as a good part of its work."""
    attention = {(q, kv): 1e-4 + 3e-6 * q * kv**0.5 for q, kv in attention_shapes(facts)}
    mlp = {width: 2e-4 + 1e-6 * width**1.1 for width in mlp_widths(facts, 16)}
    return Times(1e-3, attention, mlp)


def ceiling_of(facts: Facts, price: Price, share: float) -> Ceiling:
    """So large a share of what the dense model's layers cost, above what a model costs anyway."""
    layer = price.attention((facts.query_heads, facts.kv_heads)) + price.mlp(facts.ffn)
    limit = price.constant + share * facts.layers * layer
    return Ceiling(price, limit if price.unit == "ms" else int(limit))


def limit_of(budget: Budget) -> float:
    assert isinstance(budget.target, Ceiling)
    return budget.target.limit


def total_cost(budget: Budget, candidate: Candidate) -> float:
    """What a candidate costs, counted from its tensors' shapes one by one."""
    facts, layout = budget.facts, budget.layout(candidate)
    tensors = tensor_shapes(facts, layout)
    match budget.price.unit:
        case "prunable parameters":
            return sum(math.prod(s) for name, s in tensors.items() if "_proj." in name)
        case "parameters":
            return sum(math.prod(s) for s in tensors.values())
        case "bytes of weights":
            return sum(2 * math.prod(s) for s in tensors.values())
        case "bytes of KV cache a token":
            cached = ("k_proj.weight", "v_proj.weight")
            return sum(4 * s[0] for name, s in tensors.items() if name.endswith(cached))
    times = _times(facts)
    attention = sum(times.attention[shape] for shape in candidate.shapes if shape != (0, 0))
    widths, seconds = zip(*sorted(times.mlp.items()), strict=True)
    mlp = sum(float(np.interp(width, widths, seconds)) for width in candidate.widths if width)
    return 1e3 * (times.constant + attention + mlp)


def rules_of(facts: Facts, tied: bool) -> Callable[[int, int], bool]:
    """A model whose layers are alike has attention and heads that divide the hidden size."""
    if not tied:
        return lambda queries, kv: True
    return lambda queries, kv: kv > 0 and facts.hidden_size % queries == 0


def assert_legal(budget: Budget, candidate: Candidate) -> None:
    facts = budget.facts
    assert len(candidate.shapes) == len(candidate.widths) == facts.layers
    for queries, kv in candidate.shapes:
        assert budget.attention_is_legal(queries, kv)
        assert 0 <= kv <= facts.kv_heads and 0 <= queries <= facts.query_heads
        assert queries % kv == 0 and queries >= kv if kv else queries == 0
        assert not kv or queries // kv <= facts.query_heads // facts.kv_heads
    for width in candidate.widths:
        assert width == facts.ffn or (width % budget.multiple_of == 0 and 0 <= width < facts.ffn)
    if budget.tied:
        assert len(set(candidate.shapes)) == len(set(candidate.widths)) == 1
        assert candidate.widths[0] > 0
