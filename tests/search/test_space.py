# SPDX-License-Identifier: Apache-2.0
"""Whatever is proposed is legal and has the size asked for; what is refused cannot be had."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prunec.compiler.model.facts import Facts, facts_from_config
from prunec.compiler.model.layout import (
    LayerSpec,
    dense_layout,
    prunable_parameters,
    tensor_shapes,
)
from prunec.compiler.search.budget import Budget, Candidate, Ceiling, InfeasibleTargetError, Shape
from prunec.compiler.search.latency import Times, attention_shapes, mlp_widths
from prunec.compiler.search.price import (
    Price,
    kv_price,
    latency_price,
    parameter_price,
    weight_price,
)
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


KINDS = ["parameters", "weights", "kv", "latency"]
ROUNDING = 1e-12  # of sums of milliseconds; all other costs are whole numbers


@st.composite
def all_facts(draw: st.DrawFn) -> Facts:
    heads, kv_heads = draw(HEADS)
    return _facts(
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
    return Budget(facts, draw(SPARSITIES), multiple, tied, _rules(facts, tied))


@st.composite
def ceilings(draw: st.DrawFn) -> Budget:
    """Budgets of all kinds that may not be exceeded, from almost nothing to almost everything."""
    facts = draw(all_facts())
    tied, multiple = draw(st.booleans()), draw(st.sampled_from([1, 8, 16, 24]))
    price = _price(draw(st.sampled_from(KINDS)), facts)
    ceiling = _ceiling(facts, price, draw(st.floats(0.001, 0.999)))
    return Budget(facts, ceiling, multiple, tied, _rules(facts, tied))


def _price(kind: str, facts: Facts) -> Price:
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


def _ceiling(facts: Facts, price: Price, share: float) -> Ceiling:
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


# --- costs ----------------------------------------------------------------------------------------


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
    facts = _facts()
    price = _price(kind, facts)
    for share, tied in ((1.0, False), (1.5, False), (0.0001, True)):
        budget = Budget(facts, _ceiling(facts, price, share), 16, tied, _rules(facts, tied))
        with pytest.raises(InfeasibleTargetError, match="the least that is possible is") as caught:
            budget.uniform_layout()
        assert price.unit in str(caught.value)


def test_a_width_that_an_export_cannot_express_is_not_there() -> None:
    facts = _facts()
    budget = Budget(
        facts, 0.5, 16, False, _rules(facts, False), lambda width: width > 0 and width % 32 == 0
    )
    assert budget.widths == (32, 64, 96, 128, 160)


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


@pytest.mark.parametrize("seed", [int.from_bytes(os.urandom(4), "big")])
@pytest.mark.parametrize("kind", KINDS)
def test_mutations_under_a_ceiling_reach_far_and_use_what_is_free(kind: str, seed: int) -> None:
    facts = _facts(hidden_size=256, intermediate_size=704, num_hidden_layers=6, head_dim=32)
    price = _price(kind, facts)
    budget = Budget(facts, _ceiling(facts, price, 0.6), 16, False, _rules(facts, False))
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
