# SPDX-License-Identifier: Apache-2.0
"""Layers keep their shares, in legal pieces, and the whole has the size asked for."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prunec.compiler.model.layout import Layout
from prunec.compiler.search.allocation import allocate
from prunec.compiler.search.budget import Budget, Candidate, Ceiling, InfeasibleTargetError
from tests.search.conftest import (
    ROUNDING,
    assert_legal,
    budgets,
    ceilings,
    facts_of,
    limit_of,
    price_of,
    rules_of,
    total_cost,
)


def _budget(target: float = 0.5, **sizes: int) -> Budget:
    facts = facts_of(
        **{
            "hidden_size": 64,
            "intermediate_size": 512,
            "num_hidden_layers": 8,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
        }
        | sizes
    )
    return Budget(facts, target, 4, False, rules_of(facts, False))


def _costs(budget: Budget, layout: Layout) -> list[float]:
    """What each layer keeps of the dense one."""
    facts = budget.facts
    dense = budget.attention_size((facts.query_heads, facts.kv_heads)) + budget.mlp_size(facts.ffn)
    return [
        (budget.attention_size((spec.query_heads, spec.kv_heads)) + budget.mlp_size(spec.ffn))
        / dense
        for spec in layout
    ]


def _shares(layers: int) -> st.SearchStrategy[list[float]]:
    return st.lists(st.floats(0.3, 3.0), min_size=layers, max_size=layers)


@given(st.one_of(budgets(), ceilings()), st.data())
@settings(max_examples=120, deadline=None)
def test_every_allocation_is_legal_and_of_the_size_asked_for(
    budget: Budget, data: st.DataObject
) -> None:
    budget = replace(budget, tied=False, attention_is_legal=rules_of(budget.facts, False))
    shares = data.draw(_shares(budget.facts.layers))
    attention = data.draw(st.sampled_from([0.5, 1.0, 2.0]))
    try:
        candidate = Candidate.of(allocate(budget, shares, attention))
    except InfeasibleTargetError:
        # Only where a size is hard to meet at all: tiny models, extreme targets.
        assume(False)
    assert_legal(budget, candidate)
    if isinstance(budget.target, Ceiling):
        assert total_cost(budget, candidate) <= limit_of(budget) * (1 + ROUNDING)
    else:
        # Equal shares are the uniform layout, which may miss the size by a whole step.
        most = budget.unit / (2 if len({*shares}) > 1 or attention != 1 else 1)
        assert abs(total_cost(budget, candidate) - budget.limit) <= most


@given(st.sampled_from([0.2, 0.5, 0.7]), _shares(8))
@settings(max_examples=40, deadline=None)
def test_layers_keep_their_shares(target: float, shares: list[float]) -> None:
    budget = _budget(target)
    kept = _costs(budget, allocate(budget, shares))
    assert sum(kept) / 8 == pytest.approx(1 - target, abs=0.002)
    # A twentieth, or of a small share half a piece of attention: layers come in such pieces.
    facts = budget.facts
    dense = budget.dense_size / facts.layers
    piece = budget.attention_size((facts.query_heads // facts.kv_heads, 1)) / dense
    free = [(k, share) for k, share in zip(kept, shares, strict=True) if k < 0.995]
    if len(free) > 1:
        factor = sum(k for k, _ in free) / sum(share for _, share in free)
        assert all(
            abs(k - share * factor) < max(0.05 * share * factor, piece / 2) for k, share in free
        )
        whole = (share for k, share in zip(kept, shares, strict=True) if k >= 0.995)
        assert all(share * factor > 0.94 for share in whole)


def test_a_layer_that_is_to_stay_whole_does() -> None:
    budget = _budget()
    layout = allocate(budget, [math.inf, 1, 1, 1, 1, 1, 1, math.inf])
    kept = _costs(budget, layout)
    assert kept[0] == kept[-1] == 1
    assert kept[1:-1] == pytest.approx([1 / 3] * 6, abs=0.02)
    with pytest.raises(InfeasibleTargetError):
        allocate(budget, [math.inf] * 7 + [1.0])


def test_a_layer_that_is_to_keep_nothing_goes() -> None:
    budget = _budget()
    layout = allocate(budget, [1, 1, 1, 1, 1, 1, 1, 0.0])
    assert (layout[-1].kv_heads, layout[-1].ffn) == (0, 0)
    assert _costs(budget, layout)[:-1] == pytest.approx([4 / 7] * 7, abs=0.02)
    attended = replace(budget, attended=frozenset(range(8)))
    assert allocate(attended, [1, 1, 1, 1, 1, 1, 1, 0.0])[-1].kv_heads > 0


def test_equal_shares_are_the_uniform_layout() -> None:
    budget = _budget()
    assert allocate(budget, [1.0] * 8) == budget.uniform_layout()


def test_layers_that_have_to_be_alike_cannot_keep_different_shares() -> None:
    budget = replace(_budget(), tied=True)
    with pytest.raises(InfeasibleTargetError, match="alike"):
        allocate(budget, [1, 2, 1, 1, 1, 1, 1, 1])


def test_attention_gets_its_own_share_and_the_mlp_the_rest() -> None:
    budget = _budget()
    for attention, kv_heads in ((0.5, 2), (1.0, 4), (1.5, 6)):
        layout = allocate(budget, [1.0] * 8, attention)
        assert {spec.kv_heads for spec in layout} == {kv_heads}
        assert _costs(budget, layout) == pytest.approx([0.5] * 8, abs=0.02)
    # What is to stay whole does, attention included.
    layout = allocate(budget, [math.inf, 1, 1, 1, 1, 1, 1, 1], 0.5)
    assert (layout[0].kv_heads, layout[0].ffn) == (8, 512)


def test_a_kv_cache_is_shared_out_by_attention_alone() -> None:
    facts = _budget().facts
    price = price_of("kv", facts)
    limit = 8 * price.attention((16, 8)) / 2
    budget = replace(_budget(), target=Ceiling(price, limit))
    layout = allocate(budget, [0.5, 0.5, 0.5, 0.5, 1.5, 1.5, 1.5, 1.5])
    assert {spec.ffn for spec in layout} == {facts.ffn}
    assert [spec.kv_heads for spec in layout] == [2] * 4 + [6] * 4
