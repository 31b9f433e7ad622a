# SPDX-License-Identifier: Apache-2.0
"""Greedy elimination is held against refitting every candidate subset from scratch, in numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunec.compiler.model.errors import ModelError
from prunec.compiler.passes.eliminate import PANEL, HeadPath, channel_order, head_path
from prunec.compiler.passes.least_squares import (
    GramStatistics,
    NestedSolution,
    NormalEquations,
    normal_equations,
)

SEEDS = st.integers(0, 2**32 - 1)


@dataclass(frozen=True)
class Problem:
    """`rows @ V ≈ wanted`, the ridge already among the rows."""

    rows: np.ndarray
    wanted: np.ndarray

    @classmethod
    def random(
        cls, seed: int, d_in: int, d_out: int, tokens: int, *, hard: bool = False
    ) -> Problem:
        rng = np.random.default_rng(seed)
        inputs = rng.standard_normal((tokens, d_in)) @ rng.standard_normal((d_in, d_in))
        if hard:
            inputs *= np.exp(rng.standard_normal(d_in))
            inputs[:, rng.integers(d_in)] = 0
            first, second = rng.integers(d_in, size=2)
            inputs[:, first] = inputs[:, second]
        weight = rng.standard_normal((d_in, d_out))
        ridge = np.sqrt(0.01 * (inputs**2).sum(axis=0).mean() or 1.0) * np.eye(d_in)
        # A target that is not reached even by all inputs together.
        wanted = np.vstack([inputs @ weight, ridge @ weight])
        noise = 0.1 * np.abs(wanted).mean() * rng.standard_normal(wanted.shape)
        return cls(np.vstack([inputs, ridge]), wanted + noise)

    def equations(self) -> NormalEquations:
        gram, target = self.rows.T @ self.rows, self.rows.T @ self.wanted
        return NormalEquations.of(torch.from_numpy(gram), torch.from_numpy(target))

    def fitted(self, kept: list[int]) -> np.ndarray:
        """[kept, d_out]: the best weights for these inputs alone."""
        return np.asarray(np.linalg.lstsq(self.rows[:, kept], self.wanted, rcond=None)[0])

    def error(self, kept: list[int]) -> float:
        """The least squared error with these inputs alone."""
        return float(((self.rows[:, kept] @ self.fitted(kept) - self.wanted) ** 2).sum())

    def output_energy(self, kept: list[int], units: list[int]) -> float:
        """⟨W, G⟩ over `units`, with the best weights for the inputs `kept`."""
        places = [kept.index(unit) for unit in units]
        target = self.rows[:, units].T @ self.wanted
        return float((self.fitted(kept)[places] * target).sum())


def assert_greedy(problem: Problem, order: list[int]) -> None:
    """Every removal was a cheapest one; twins may go in either order."""
    left = list(range(problem.rows.shape[1]))
    assert sorted(order) == left
    slack = 1e-9 * (1 + float((problem.wanted**2).sum()))
    for unit in reversed(order):
        errors = {u: problem.error([other for other in left if other != u]) for u in left}
        assert errors[unit] <= min(errors.values()) + slack, (unit, errors)
        left.remove(unit)


@given(
    SEEDS,
    st.integers(1, 12),
    st.sampled_from([1, 3, 20]),
    st.sampled_from([2, 6, 40]),
    st.booleans(),
    st.sampled_from([1, 3, 5, 64]),
)
@settings(max_examples=40, deadline=None)
def test_channels_go_one_at_a_time_each_the_cheapest_of_what_is_left(
    seed: int, d_in: int, d_out: int, tokens: int, hard: bool, panel: int
) -> None:
    problem = Problem.random(seed, d_in, d_out, tokens, hard=hard)
    assert_greedy(problem, channel_order(problem.equations(), panel=panel).tolist())


@st.composite
def hard_equations(draw: st.DrawFn) -> NormalEquations:
    """Sizes that no panel divides; few tokens, dead inputs, twins, inputs of very unequal scale."""
    rng = np.random.default_rng(draw(SEEDS))
    d_in, d_out = draw(st.sampled_from([1, 2, 31, 67])), draw(st.sampled_from([1, 17]))
    tokens = draw(st.sampled_from([5, 50, 200]))
    inputs = rng.standard_normal((tokens, d_in)) @ rng.standard_normal((d_in, d_in))
    inputs *= np.exp(draw(st.sampled_from([0, 2])) * rng.standard_normal(d_in))
    inputs[:, rng.random(d_in) < draw(st.sampled_from([0, 0.2]))] = 0
    copied = rng.random(d_in) < draw(st.sampled_from([0, 0.2]))
    inputs[:, copied] = inputs[:, :1]
    gram = inputs.T @ inputs
    gram += draw(st.sampled_from([1e-4, 0.01])) * (np.diag(gram).mean() or 1.0) * np.eye(d_in)
    target = gram @ rng.standard_normal((d_in, d_out))
    target += 0.1 * target.std() * rng.standard_normal(target.shape)
    return NormalEquations.of(torch.from_numpy(gram), torch.from_numpy(target))


@given(hard_equations(), st.sampled_from([0.0, 0.03, 1.0]), st.sampled_from([7, 64]))
@settings(max_examples=20)
def test_lazy_updates_choose_as_if_everything_were_inverted_anew_for_each_removal(
    equations: NormalEquations, first_order: float, panel: int
) -> None:
    order = channel_order(equations, panel, first_order=first_order)
    gram, target = equations.gram[:].numpy(), equations.target.numpy()
    curve = NestedSolution.solve(equations, order).excess_errors().numpy()
    total = curve[0] + np.abs(first_order * np.linalg.solve(gram, target) * target).sum()
    left, error = np.arange(len(gram)), 0.0
    for unit in order.flip(0).tolist():
        inverse = np.linalg.inv(gram[np.ix_(left, left)])
        weight = inverse @ target[left]
        growth = (weight**2).sum(axis=1) / np.diag(inverse)
        scores = growth + 2 * first_order * (weight * target[left]).sum(axis=1)
        # Twins may go in either order; a choice is wrong if another one is clearly cheaper.
        slack = 1e-8 * np.abs(scores).min() + 1e-11 * total
        assert scores[left == unit].item() <= scores.min() + slack, unit
        # What a removal costs by the formula is what the factorisation says that it costs.
        error += growth[left == unit].item()
        left = left[left != unit]
        assert curve[len(left)] == pytest.approx(error, rel=1e-8, abs=1e-11 * total)
    assert not len(left)


@given(SEEDS, st.sampled_from([90, 300]), st.sampled_from([0.0, 0.1]))
@settings(max_examples=3)
def test_how_many_updates_wait_changes_no_choice(
    seed: int, tokens: int, first_order: float
) -> None:
    equations = Problem.random(seed, 2 * PANEL + 1, 20, tokens).equations()
    one_at_a_time = channel_order(equations, 1, first_order=first_order).tolist()
    for panel in (37, PANEL):
        assert channel_order(equations, panel, first_order=first_order).tolist() == one_at_a_time
    for fewest in (0, 1, PANEL, 2 * PANEL + 1):  # of those that stay only the order is unknown
        order = channel_order(equations, first_order=first_order, fewest=fewest).tolist()
        assert order[fewest:] == one_at_a_time[fewest:]
        assert sorted(order) == list(range(2 * PANEL + 1))


@given(
    SEEDS,
    st.sampled_from([(4, 4), (4, 2), (4, 1), (6, 2), (6, 3), (1, 1), (3, 1)]),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([4, 40]),
    st.booleans(),
    st.sampled_from([0.0, 0.0, 0.1, 1.0]),
    st.data(),
)
@settings(max_examples=40, deadline=None)
def test_heads_go_by_cheapest_legal_move_through_the_waypoints(
    seed: int,
    heads: tuple[int, int],
    head_dim: int,
    tokens: int,
    hard: bool,
    first_order: float,
    data: st.DataObject,
) -> None:
    (query_heads, kv_heads), per_group = heads, heads[0] // heads[1]
    problem = Problem.random(seed, query_heads * head_dim, 5, tokens, hard=hard)
    waypoints, kv, per = [], kv_heads, per_group
    for _ in range(data.draw(st.integers(0, 2))):
        kv, per = data.draw(st.integers(1, kv)), data.draw(st.integers(1, per))
        waypoints.append((kv * per, kv))

    def parameters(queries: int, kvs: int) -> int:
        return 2 * 16 * head_dim * (queries + kvs) + (16 if kvs else 0)

    path = head_path(
        problem.equations(),
        head_dim=head_dim,
        query_heads=query_heads,
        kv_heads=kv_heads,
        parameters=parameters,
        waypoints=waypoints,
        first_order=first_order,
    )

    assert path.states[0] == (tuple(range(query_heads)), tuple(range(kv_heads)))
    assert path.states[-1] == ((), ())
    shapes = [(len(queries), len(kvs)) for queries, kvs in path.states]
    assert [shape for shape in shapes if shape in waypoints] == sorted(set(waypoints))[::-1]
    order = path.order.tolist()
    assert sorted(order) == list(range(query_heads * head_dim))
    for queries, kvs in path.states:
        assert tuple(sorted({q // per_group for q in queries})) == kvs
        sizes = {sum(q // per_group == group for q in queries) for group in kvs}
        assert len(sizes) <= 1, "a KV group has lost more heads than another"
        columns = _columns(queries, head_dim)
        assert sorted(order[: len(columns)]) == columns
    assert_cheapest_moves(
        problem, path.states, per_group, head_dim, parameters, waypoints, first_order
    )


def assert_cheapest_moves(
    problem: Problem,
    states: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...],
    per_group: int,
    head_dim: int,
    parameters: Callable[[int, int], int],
    waypoints: list[tuple[int, int]],
    first_order: float,
) -> None:
    """Every step was a legal move towards the next waypoint, and a cheapest one per parameter."""
    goals = [*waypoints, (0, 0)]
    slack = 1e-9 * (1 + float((problem.wanted**2).sum()))
    for (queries, kvs), (after, kvs_after) in pairwise(states):
        while goals[0] == (len(queries), len(kvs)):
            goals.pop(0)
        goal_queries, goal_kv = goals[0]
        members = {g: [q for q in queries if q // per_group == g] for g in kvs}
        error = problem.error(_columns(queries, head_dim))

        def growth(gone: list[int], queries=queries, error=error) -> float:  # type: ignore[no-untyped-def]
            left = tuple(q for q in queries if q not in gone)
            kept, lost = _columns(queries, head_dim), _columns(tuple(gone), head_dim)
            energy = problem.output_energy(kept, lost)
            return float(problem.error(_columns(left, head_dim)) - error + 2 * first_order * energy)

        moves: list[list[int]] = list(members.values()) if len(kvs) > goal_kv else []
        goal_per_group = goal_queries // goal_kv if goal_kv else 1
        if len(queries) // len(kvs) > max(goal_per_group, 1):
            # One head in every group: in each the cheapest beside those already taken.
            taken: list[int] = []
            for group in members.values():
                taken.append(min(group, key=lambda q: growth([*taken, q])))
            moves.append(taken)

        def price(gone: list[int], queries=queries, kvs=kvs) -> float:  # type: ignore[no-untyped-def]
            left = [q for q in queries if q not in gone]
            size = parameters(len(left), len({q // per_group for q in left}))
            return growth(gone) / (parameters(len(queries), len(kvs)) - size)

        chosen = [q for q in queries if q not in after]
        if len(kvs_after) == len(kvs):
            assert len(chosen) == len(kvs), "not one head of every group"
            assert len(queries) // len(kvs) > max(goal_per_group, 1), "overshoots the waypoint"
            for number, head in enumerate(chosen):
                group, taken = members[head // per_group], chosen[:number]
                assert growth([*taken, head]) <= min(growth([*taken, q]) for q in group) + slack
        else:
            assert len(kvs) > goal_kv, "overshoots the waypoint"
            assert chosen in members.values(), "not one whole group"
        assert price(chosen) <= min(map(price, moves)) + slack


def _columns(heads: tuple[int, ...], head_dim: int) -> list[int]:
    return [h * head_dim + offset for h in heads for offset in range(head_dim)]


@pytest.mark.parametrize("zero", ["inputs", "weights"])
def test_a_sublayer_that_does_nothing_still_has_an_order(zero: str) -> None:
    gram = torch.eye(6, dtype=torch.float64)
    target = torch.zeros(6, 2, dtype=torch.float64)
    if zero == "inputs":
        target += torch.tensor([[3.0], [1.0], [4.0], [1.5], [9.0], [2.6]])
    order = channel_order(NormalEquations.of(gram, target), panel=2)
    assert sorted(order.tolist()) == list(range(6))
    costs = target.square().sum(dim=1)[order]
    assert costs.tolist() == sorted(costs.tolist(), reverse=True)


@given(SEEDS, st.sampled_from([(4, 2), (6, 2), (4, 4), (6, 3)]), st.sampled_from([2, 3, 4]))
@settings(max_examples=15)
def test_turning_the_values_inside_a_kv_head_changes_no_cost_and_no_choice(
    seed: int, heads: tuple[int, int], head_dim: int
) -> None:
    """Why whole heads are not rotated before they are selected: it could gain nothing."""
    (query_heads, kv_heads), per_group = heads, heads[0] // heads[1]
    problem = Problem.random(seed, query_heads * head_dim, 5, 40)
    rng = np.random.default_rng(seed)
    turn = np.zeros((query_heads * head_dim,) * 2)
    for kv in range(kv_heads):
        # A group's query heads mix the same values, so the same rotation reaches all of them.
        rotation = np.linalg.qr(rng.standard_normal((head_dim, head_dim)))[0]
        for query in range(kv * per_group, (kv + 1) * per_group):
            columns = slice(query * head_dim, (query + 1) * head_dim)
            turn[columns, columns] = rotation
    turned = Problem(problem.rows @ turn, problem.wanted)

    def path_and_errors(problem: Problem) -> tuple[HeadPath, list[float]]:
        path = head_path(
            problem.equations(),
            head_dim=head_dim,
            query_heads=query_heads,
            kv_heads=kv_heads,
            parameters=lambda queries, kvs: queries + kvs,
        )
        curve = NestedSolution.solve(problem.equations(), path.order).excess_errors()
        return path, [curve[len(queries) * head_dim].item() for queries, _ in path.states]

    path, errors = path_and_errors(problem)
    turned_path, turned_errors = path_and_errors(turned)
    assert turned_path.states == path.states
    assert torch.equal(turned_path.order, path.order)
    assert turned_errors == pytest.approx(errors, rel=1e-9, abs=1e-9 * errors[-1])
    # Single inputs do notice.
    if head_dim > 1:
        gram, turned_gram = problem.equations().gram[:], turned.equations().gram[:]
        assert not torch.allclose(gram.diagonal(), turned_gram.diagonal(), rtol=1e-3)


def test_inputs_that_rounding_cannot_tell_apart_are_refused_with_a_way_out() -> None:
    equations = NormalEquations.of(torch.ones(4, 4).double(), torch.ones(4, 2).double())
    for attempt in (
        lambda: channel_order(equations),
        lambda: NestedSolution.solve(equations, torch.arange(4)),
    ):
        with pytest.raises(ModelError, match="collinear") as refusal:
            attempt()
        assert refusal.value.hint == "raise method.damping"


@pytest.mark.parametrize("first_order", [0.0, 0.1])
@pytest.mark.parametrize("dense_target", [0.0, 0.5])
def test_what_goes_is_what_the_dense_map_needs_least_whatever_is_fitted(
    dense_target: float, first_order: float
) -> None:
    statistics = GramStatistics.empty(40, 6, with_missing=dense_target > 0)
    inputs = torch.randn(200, 40) * torch.randn(40).exp()
    statistics.add(inputs, 20 * torch.randn(200, 6) if dense_target else None)
    weight = torch.randn(40, 6)
    problem = normal_equations(statistics, weight, damping=0.01, dense_target=dense_target)
    order = channel_order(problem, first_order=first_order)
    gram = problem.gram[:].clone()
    reproduced = NormalEquations.of(gram, gram @ weight.double())  # to be solved for
    assert order.tolist() == channel_order(reproduced, first_order=first_order).tolist()

    def path(problem: NormalEquations) -> HeadPath:
        return head_path(
            problem,
            head_dim=4,
            query_heads=10,
            kv_heads=5,
            parameters=lambda queries, kv: queries + kv,
            first_order=first_order,
        )

    assert path(problem).states == path(reproduced).states
