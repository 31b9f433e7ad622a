# SPDX-License-Identifier: Apache-2.0
"""Whatever is proposed is legal and has the size asked for; what is refused cannot be had."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prunec.compiler.model.facts import Facts, facts_from_config
from prunec.compiler.model.layout import LayerSpec, dense_layout, prunable_parameters
from prunec.compiler.search.budget import Budget, Candidate, InfeasibleTargetError, Shape
from prunec.compiler.search.space import Space

SPARSITIES = st.sampled_from([0.01, 0.1, 0.25, 0.375, 0.5, 0.7, 0.9])
HEADS = st.sampled_from([(4, 4), (4, 2), (4, 1), (8, 4), (12, 4), (12, 3), (1, 1)])


def _facts(**changes: Any) -> Facts:
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


@st.composite
def budgets(draw: st.DrawFn) -> Budget:
    heads, kv_heads = draw(HEADS)
    facts = _facts(
        hidden_size=draw(st.sampled_from([24, 96])),
        intermediate_size=draw(st.sampled_from([80, 97, 160, 173])),
        num_hidden_layers=draw(st.integers(1, 5)),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=draw(st.sampled_from([2, 8, 16])),
        attention_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
    )
    tied, multiple = draw(st.booleans()), draw(st.sampled_from([1, 8, 16, 24]))
    return Budget(facts, draw(SPARSITIES), multiple, tied, _rules(facts, tied))


def _rules(facts: Facts, tied: bool) -> Callable[[int, int], bool]:
    """A model whose layers are alike has attention and heads that divide the hidden size."""
    if not tied:
        return lambda queries, kv: True
    return lambda queries, kv: kv > 0 and facts.hidden_size % queries == 0


def _size(facts: Facts, shape: Shape, width: int) -> int:
    return prunable_parameters(facts, [LayerSpec(*shape, facts.head_dim, width)])


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


# --- the uniform layout ---------------------------------------------------------------------------


@given(budgets())
@settings(max_examples=200, deadline=None)
def test_the_uniform_layout_has_the_size_or_there_is_none(budget: Budget) -> None:
    facts, layers = budget.facts, budget.facts.layers
    dense = prunable_parameters(facts, dense_layout(facts))
    wanted = (1 - budget.sparsity) * dense
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
    facts = _facts(hidden_size=256, intermediate_size=704, num_hidden_layers=8, head_dim=32)
    for sparsity in (0.25, 0.375, 0.5, 0.625):
        for tied in (False, True):
            budget = Budget(facts, sparsity, 16, tied, _rules(facts, tied))
            (first, *_) = layout = budget.uniform_layout()
            attention = budget.attention_size((first.query_heads, first.kv_heads))
            share = attention / budget.attention_size((8, 4))
            mlp = sum(spec.ffn for spec in layout) / (8 * 704)
            assert share == pytest.approx(1 - sparsity, abs=0.13)
            assert mlp == pytest.approx(1 - sparsity, abs=0.1)


def test_whole_groups_go_rather_than_a_head_of_each() -> None:
    facts = _facts(hidden_size=256, intermediate_size=704, num_hidden_layers=8, head_dim=32)
    layout = Budget(facts, 0.375, 16, False, _rules(facts, False)).uniform_layout()
    # (4, 4) is nearer to 62.5 % of the attention's parameters, but thins every group.
    assert {(spec.query_heads, spec.kv_heads) for spec in layout} == {(6, 3)}
    # With a single group there is nothing but thinning it.
    facts = _facts(hidden_size=256, intermediate_size=704, head_dim=32, num_key_value_heads=1)
    layout = Budget(facts, 0.5, 16, False, _rules(facts, False)).uniform_layout()
    assert 1 < layout[0].query_heads < facts.query_heads


def test_what_no_layout_can_reach_is_refused() -> None:
    facts = _facts(intermediate_size=48)
    budget = Budget(facts, 0.999, 16, True, _rules(facts, True))
    with pytest.raises(InfeasibleTargetError, match=r"0\.999"):
        budget.uniform_layout()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("multiple", [24, 48, 64, 4096])
def test_a_step_as_large_as_the_mlp_is_no_crash(tied: bool, multiple: int) -> None:
    facts = _facts(intermediate_size=48)
    budget = Budget(facts, 0.5, multiple, tied, _rules(facts, tied))
    try:
        candidate = Candidate.of(budget.uniform_layout())
    except InfeasibleTargetError:
        return
    assert_legal(budget, candidate)


# --- the path that tied layers share --------------------------------------------------------------


@given(HEADS, st.sampled_from([24, 64, 96, 256]), st.data())
@settings(max_examples=80, deadline=None)
def test_tied_layers_go_down_together_one_legal_shape_after_another(
    heads: tuple[int, int], hidden: int, data: st.DataObject
) -> None:
    assume(hidden % heads[0] == 0)  # transformers insists on it
    facts = _facts(hidden_size=hidden, num_attention_heads=heads[0], num_key_value_heads=heads[1])
    budget = Budget(facts, 0.5, 16, True, _rules(facts, True))
    centre = data.draw(st.sampled_from([shape for shape in budget.shapes if shape[1]]))
    path = budget.tied_path(centre)
    assert path[0] == heads and path[-1] == (1, 1) and centre in path
    for (queries, kv), (fewer, fewer_kv) in pairwise(path):
        assert budget.attention_is_legal(fewer, fewer_kv) and fewer % fewer_kv == 0
        assert fewer_kv <= kv and fewer // fewer_kv <= queries // kv
        assert (fewer, fewer_kv) != (queries, kv)


# --- mutations ------------------------------------------------------------------------------------


def _random_path(budget: Budget, rng: np.random.Generator, centre: Shape) -> tuple[Shape, ...]:
    """Removals one by one, through the centre, as a supernet's layer has them; legal ones only."""
    facts = budget.facts
    kv, per = facts.kv_heads, facts.query_heads // facts.kv_heads
    path = [(kv * per, kv)]
    for goal_kv, goal_per in ((centre[1], centre[0] // centre[1] if centre[1] else 1), (0, 1)):
        while kv > goal_kv or (kv and per > goal_per):
            if per > goal_per and (kv <= goal_kv or rng.random() < 0.5):
                per -= 1
            else:
                kv -= 1
            path.append((kv * per, kv))
    return tuple(shape for shape in path if budget.attention_is_legal(*shape))


@given(budgets(), st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 4]), st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_every_mutation_is_legal_on_its_paths_and_of_the_size_asked_for(
    budget: Budget, seed: int, levels: int, most: int
) -> None:
    rng = np.random.default_rng(seed)
    assume(len(budget.widths) > 2)
    try:
        parent = Candidate.of(budget.uniform_layout())
    except InfeasibleTargetError:
        assume(False)
    layers = budget.facts.layers
    paths = (_random_path(budget, rng, parent.shapes[0]),) * layers
    if not budget.tied:
        paths = tuple(_random_path(budget, rng, shape) for shape in parent.shapes)
    space = Space(budget, paths)
    for _ in range(30):
        child = space.mutate(parent, levels * budget.multiple_of, rng, most)
        if child is None:
            continue
        assert_legal(budget, child)
        assert all(shape in path for shape, path in zip(child.shapes, paths, strict=True))
        size = prunable_parameters(budget.facts, budget.layout(child))
        assert budget.size(child) == size
        assert abs(size - budget.parameters) <= budget.unit / 2
        parent = child


@pytest.mark.parametrize("seed", [int.from_bytes(os.urandom(4), "big")])
@pytest.mark.parametrize("tied", [False, True])
def test_mutations_reach_far_and_seldom_fail(tied: bool, seed: int) -> None:
    facts = _facts(hidden_size=256, intermediate_size=704, num_hidden_layers=6, head_dim=32)
    budget = Budget(facts, 0.5, 16, tied, _rules(facts, tied))
    parent = Candidate.of(budget.uniform_layout())
    rng = np.random.default_rng(seed)
    path = _random_path(budget, rng, parent.shapes[0])
    if tied:
        path = tuple(budget.tied_path(parent.shapes[0]))
    space = Space(budget, (path,) * 6)
    children = [space.mutate(parent, 80, rng, 4) for _ in range(300)]
    found = {child for child in children if child is not None} - {parent}
    if tied:
        assert len({child.shapes[0] for child in found}) >= 2
        return
    assert len(children) - children.count(None) > 150
    assert len(found) > 100
    for layer in range(6):
        assert len({child.shapes[layer] for child in found}) >= 3
        assert len({child.widths[layer] for child in found}) >= 3


def test_all_legal_shapes_are_known_largest_first() -> None:
    budget = Budget(_facts(), 0.5, 16, False, lambda queries, kv: True)
    shapes = budget.shapes
    assert set(shapes) == {(0, 0)} | {(kv * q, kv) for kv in range(1, 5) for q in (1, 2)}
    sizes = [budget.attention_size(shape) for shape in shapes]
    assert sizes == sorted(sizes, reverse=True)
    assert budget.widths == (*range(0, 160, 16), 160)
    assert Budget(_facts(), 0.5, 48, True, budget.attention_is_legal).widths == (48, 96, 144, 160)
