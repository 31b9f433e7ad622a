# SPDX-License-Identifier: Apache-2.0
"""Whatever is proposed is legal and has the size asked for."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prunec.compiler.model.layout import prunable_parameters
from prunec.compiler.search.budget import Budget, Candidate, InfeasibleTargetError, Shape
from prunec.compiler.search.space import Space
from tests.search.conftest import (
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
        assert abs(size - budget.limit) <= budget.unit / 2
        parent = child


@given(ceilings(), st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 4]), st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_no_mutation_ever_exceeds_a_ceiling(
    budget: Budget, seed: int, levels: int, most: int
) -> None:
    rng = np.random.default_rng(seed)
    try:
        parent = Candidate.of(budget.uniform_layout())
    except InfeasibleTargetError:
        assume(False)
    paths = tuple(_random_path(budget, rng, shape) for shape in parent.shapes)
    if budget.tied:
        paths = paths[:1] * budget.facts.layers
    space = Space(budget, paths)
    for _ in range(30):
        child = space.mutate(parent, levels * budget.multiple_of, rng, most)
        if child is None:
            continue
        assert_legal(budget, child)
        assert all(shape in path for shape, path in zip(child.shapes, paths, strict=True))
        assert total_cost(budget, child) <= limit_of(budget) + ROUNDING * limit_of(budget)
        if budget.mlp_is_free:
            assert {*child.widths} == {budget.facts.ffn}
        parent = child


@pytest.mark.parametrize("seed", [int(os.environ["PRUNEC_TEST_SEED"])])
@pytest.mark.parametrize("kind", KINDS)
def test_mutations_under_a_ceiling_reach_far_and_use_what_is_free(kind: str, seed: int) -> None:
    facts = facts_of(hidden_size=256, intermediate_size=704, num_hidden_layers=6, head_dim=32)
    price = price_of(kind, facts)
    budget = Budget(facts, ceiling_of(facts, price, 0.6), 16, False, rules_of(facts, False))
    parent = start = Candidate.of(budget.uniform_layout())
    rng = np.random.default_rng(seed)
    paths = tuple(_random_path(budget, rng, shape) for shape in parent.shapes)
    space = Space(budget, paths)
    found, tries = set(), 0
    for _ in range(20):
        children = [space.mutate(parent, 80, rng, 4) for _ in range(10)]
        tries += len(children)
        kept = [child for child in children if child is not None]
        found |= {*kept} - {start}
        # A neuron a layer is the least that is moved; attention steps differ in size.
        unit = max(map(budget.attention_size, budget.shapes)) / 4
        unit = unit if budget.mlp_is_free else budget.unit
        assert all(budget.limit - budget.size(child) < unit for child in kept)
        parent = kept[0] if kept else parent
    # Few layers, and only their KV heads to move: many children are alike.
    assert len(found) > (10 if budget.mlp_is_free else 60)
    for layer in range(6):
        assert len({child.shapes[layer] for child in found}) >= 2
        assert budget.mlp_is_free or len({child.widths[layer] for child in found}) >= 3


@pytest.mark.parametrize("seed", [int(os.environ["PRUNEC_TEST_SEED"])])
@pytest.mark.parametrize("tied", [False, True])
def test_mutations_reach_far_and_seldom_fail(tied: bool, seed: int) -> None:
    facts = facts_of(hidden_size=256, intermediate_size=704, num_hidden_layers=6, head_dim=32)
    budget = Budget(facts, 0.5, 16, tied, rules_of(facts, tied))
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


@given(budgets(), st.sampled_from([0.2, 0.5, 0.8]), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_a_start_on_the_paths_of_another_centre_is_legal_and_of_the_size_asked_for(
    budget: Budget, centre: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    assume(len(budget.widths) > 2)
    try:
        wanted = Candidate.of(budget.uniform_layout())
        around = Candidate.of(replace(budget, target=centre).uniform_layout())
    except InfeasibleTargetError:
        assume(False)
    layers = budget.facts.layers
    paths = (_random_path(budget, rng, around.shapes[0]),) * layers
    if not budget.tied:
        paths = tuple(_random_path(budget, rng, shape) for shape in around.shapes)
    space = Space.within(budget, paths)
    found = space.reachable(wanted, max(budget.facts.ffn // 8, 1), rng)
    if all(shape in path for shape, path in zip(wanted.shapes, space.paths, strict=True)):
        assert found == wanted
    elif found is not None:
        assert all(s in path for s, path in zip(found.shapes, space.paths, strict=True))
        assert_legal(budget, found)
        assert budget.fits(found)


def test_a_start_far_from_its_shapes_has_its_widths_made_to_fit() -> None:
    """All layers lose most of their attention, more than a step of every MLP makes good."""
    facts = facts_of(intermediate_size=320)
    budget = Budget(facts, 0.25, 4, False, rules_of(facts, False))
    wanted = Candidate.of(budget.uniform_layout())
    space = Space.within(budget, (((8, 4), (2, 1), (0, 0)),) * facts.layers)
    assert wanted.shapes[0] not in space.paths[0]
    found = space.reachable(wanted, 4, np.random.default_rng(0))
    assert found is not None and budget.fits(found)
    assert all(shape in space.paths[0] for shape in found.shapes)
