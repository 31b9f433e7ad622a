# SPDX-License-Identifier: Apache-2.0
"""The layouts that a budget allows have the size asked for; what is refused cannot be had."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import LayerSpec, dense_layout, prunable_parameters
from prunec.compiler.search.budget import Budget, Candidate, Ceiling, InfeasibleTargetError, Shape
from tests.search.conftest import (
    HEADS,
    KINDS,
    ROUNDING,
    assert_legal,
    budgets,
    ceiling_of,
    ceilings,
    facts_of,
    limit_of,
    price_of,
    rules_of,
    total_cost,
)


def _size(facts: Facts, shape: Shape, width: int) -> int:
    return prunable_parameters(facts, [LayerSpec(*shape, facts.head_dim, width)])


@given(budgets())
@settings(max_examples=200, deadline=None)
def test_the_uniform_layout_has_the_size_or_there_is_none(budget: Budget) -> None:
    facts, layers = budget.facts, budget.facts.layers
    dense = prunable_parameters(facts, dense_layout(facts))
    assert isinstance(budget.target, float)
    wanted = (1 - budget.target) * dense
    legal = [*range(0, facts.ffn, budget.multiple_of), facts.ffn]
    legal = legal[1:] if budget.tied else legal
    assume(len(legal) > 2)
    sizes = [_size(facts, (0, 0), width) for width in legal]
    step = max(above - below for below, above in pairwise(sizes))
    unit = step * layers if budget.tied else step
    try:
        candidate = Candidate.of(budget.uniform_layout())
    except InfeasibleTargetError:
        per_group = facts.query_heads // facts.kv_heads
        for kv in range(1, facts.kv_heads + 1):
            for queries in range(kv, kv * per_group + 1, kv):
                if not budget.attention_is_legal(queries, kv):
                    continue
                for below, above in zip(legal, [*legal[1:], legal[-1]], strict=True):
                    for raised in (0, layers) if budget.tied else range(layers + 1):
                        shape = (queries, kv)
                        size = raised * _size(facts, shape, above)
                        size += (layers - raised) * _size(facts, shape, below)
                        assert abs(size - wanted) > unit, (shape, below, above, raised)
        return
    assert_legal(budget, candidate)
    assert len(set(candidate.shapes)) == 1
    assert abs(prunable_parameters(facts, budget.layout(candidate)) - wanted) <= unit + 0.5
    used = sorted({legal.index(width) for width in candidate.widths})
    assert used[-1] - used[0] <= 1, "widths of neighbouring layers differ by more than a step"


def test_attention_and_mlp_are_cut_in_about_the_same_proportion() -> None:
    facts = facts_of(hidden_size=256, intermediate_size=704, num_hidden_layers=8, head_dim=32)
    for sparsity in (0.25, 0.375, 0.5, 0.625):
        for tied in (False, True):
            budget = Budget(facts, sparsity, 16, tied, rules_of(facts, tied))
            (first, *_) = layout = budget.uniform_layout()
            attention = budget.attention_size((first.query_heads, first.kv_heads))
            share = attention / budget.attention_size((8, 4))
            mlp = sum(spec.ffn for spec in layout) / (8 * 704)
            assert share == pytest.approx(1 - sparsity, abs=0.13)
            assert mlp == pytest.approx(1 - sparsity, abs=0.1)


def test_whole_groups_go_rather_than_a_head_of_each() -> None:
    facts = facts_of(hidden_size=256, intermediate_size=704, num_hidden_layers=8, head_dim=32)
    layout = Budget(facts, 0.375, 16, False, rules_of(facts, False)).uniform_layout()
    # (4, 4) is nearer to 62.5 % of the attention's parameters, but thins every group.
    assert {(spec.query_heads, spec.kv_heads) for spec in layout} == {(6, 3)}
    # With a single group there is nothing but thinning it.
    facts = facts_of(hidden_size=256, intermediate_size=704, head_dim=32, num_key_value_heads=1)
    layout = Budget(facts, 0.5, 16, False, rules_of(facts, False)).uniform_layout()
    assert 1 < layout[0].query_heads < facts.query_heads


def test_what_no_layout_can_reach_is_refused() -> None:
    facts = facts_of(intermediate_size=48)
    budget = Budget(facts, 0.999, 16, True, rules_of(facts, True))
    with pytest.raises(InfeasibleTargetError, match=r"0\.999"):
        budget.uniform_layout()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("multiple", [24, 48, 64, 4096])
def test_a_step_as_large_as_the_mlp_is_no_crash(tied: bool, multiple: int) -> None:
    facts = facts_of(intermediate_size=48)
    budget = Budget(facts, 0.5, multiple, tied, rules_of(facts, tied))
    try:
        candidate = Candidate.of(budget.uniform_layout())
    except InfeasibleTargetError:
        return
    assert_legal(budget, candidate)


@given(budgets() | ceilings(), st.data())
@settings(max_examples=150, deadline=None)
def test_every_kind_of_cost_is_what_the_tensors_of_a_layout_add_up_to(
    budget: Budget, data: st.DataObject
) -> None:
    layers = budget.facts.layers
    shapes, widths = st.sampled_from(budget.shapes), st.sampled_from(budget.widths)
    candidate = Candidate(
        tuple(data.draw(shapes) for _ in range(layers)),
        tuple(data.draw(widths) for _ in range(layers)),
    )
    counted = total_cost(budget, candidate)
    assert budget.price.constant + budget.size(candidate) == pytest.approx(counted, rel=ROUNDING)
    if isinstance(budget.target, Ceiling) and counted != pytest.approx(limit_of(budget)):
        assert budget.fits(candidate) == (counted < limit_of(budget))


@given(ceilings())
@settings(max_examples=300, deadline=None)
def test_the_uniform_layout_comes_close_to_a_ceiling_from_below(budget: Budget) -> None:
    facts, layers, limit = budget.facts, budget.facts.layers, limit_of(budget)
    try:
        candidate = Candidate.of(budget.uniform_layout())
    except InfeasibleTargetError:
        # Then even the smallest of everything is too much.
        smallest = Candidate((budget.shapes[-1],) * layers, (budget.widths[0],) * layers)
        if budget.mlp_is_free:
            smallest = Candidate(
                (min(budget.shapes, key=budget.attention_size),) * layers, smallest.widths
            )
        assert total_cost(budget, smallest) > limit * (1 - ROUNDING)
        return
    assert_legal(budget, candidate)
    cost = total_cost(budget, candidate)
    assert cost <= limit * (1 + ROUNDING)
    if budget.mlp_is_free:
        assert {*candidate.widths} == {facts.ffn}
        if not budget.tied:  # a KV head of one layer is the unit
            assert limit - cost < 2 * 4 * facts.head_dim
    elif not budget.tied and {*candidate.widths} != {facts.ffn}:
        assert limit - cost <= budget.unit * (1 + 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_ceiling_beyond_what_is_possible_says_what_is(kind: str) -> None:
    facts = facts_of()
    price = price_of(kind, facts)
    for share, tied in ((1.0, False), (1.5, False), (0.0001, True)):
        budget = Budget(facts, ceiling_of(facts, price, share), 16, tied, rules_of(facts, tied))
        with pytest.raises(InfeasibleTargetError, match="the least that is possible is") as caught:
            budget.uniform_layout()
        assert price.unit in str(caught.value)


def test_a_width_that_an_export_cannot_express_is_not_there() -> None:
    facts = facts_of()
    budget = Budget(
        facts, 0.5, 16, False, rules_of(facts, False), lambda width: width > 0 and width % 32 == 0
    )
    assert budget.widths == (32, 64, 96, 128, 160)


@given(HEADS, st.sampled_from([24, 64, 96, 256]), st.data())
@settings(max_examples=80, deadline=None)
def test_tied_layers_go_down_together_one_legal_shape_after_another(
    heads: tuple[int, int], hidden: int, data: st.DataObject
) -> None:
    assume(hidden % heads[0] == 0)  # transformers insists on it
    facts = facts_of(hidden_size=hidden, num_attention_heads=heads[0], num_key_value_heads=heads[1])
    budget = Budget(facts, 0.5, 16, True, rules_of(facts, True))
    centre = data.draw(st.sampled_from([shape for shape in budget.shapes if shape[1]]))
    path = budget.tied_path(centre)
    assert path[0] == heads and path[-1] == (1, 1) and centre in path
    for (queries, kv), (fewer, fewer_kv) in pairwise(path):
        assert budget.attention_is_legal(fewer, fewer_kv) and fewer % fewer_kv == 0
        assert fewer_kv <= kv and fewer // fewer_kv <= queries // kv
        assert (fewer, fewer_kv) != (queries, kv)


def test_all_legal_shapes_are_known_largest_first() -> None:
    budget = Budget(facts_of(), 0.5, 16, False, lambda queries, kv: True)
    shapes = budget.shapes
    assert set(shapes) == {(0, 0)} | {(kv * q, kv) for kv in range(1, 5) for q in (1, 2)}
    sizes = [budget.attention_size(shape) for shape in shapes]
    assert sizes == sorted(sizes, reverse=True)
    assert budget.widths == (*range(0, 160, 16), 160)
    assert Budget(facts_of(), 0.5, 48, True, budget.attention_is_legal).widths == (48, 96, 144, 160)
