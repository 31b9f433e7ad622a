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

from prunec.compiler.passes.eliminate import channel_order, head_path
from prunec.compiler.passes.least_squares import NormalEquations

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
        return NormalEquations(torch.from_numpy(gram), torch.from_numpy(target))

    def error(self, kept: list[int]) -> float:
        """The least squared error with these inputs alone."""
        rows = self.rows[:, kept]
        fitted = np.linalg.lstsq(rows, self.wanted, rcond=None)[0]
        return float(((rows @ fitted - self.wanted) ** 2).sum())


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


@given(SEEDS, st.sampled_from([90, 300]))
@settings(max_examples=2, deadline=None)
def test_many_lazy_updates_lose_no_accuracy(seed: int, tokens: int) -> None:
    problem = Problem.random(seed, 150, 20, tokens)
    equations = problem.equations()
    order = channel_order(equations)
    assert channel_order(equations, panel=1).tolist() == order.tolist()
    assert channel_order(equations, panel=37).tolist() == order.tolist()

    # The reference inverts what is left from scratch: removing p costs ‖W_p‖² / (H⁻¹)_pp.
    gram, target = equations.gram.numpy(), equations.target.numpy()
    left = np.arange(150)
    for unit in order.flip(0).tolist():
        inverse = np.linalg.inv(gram[np.ix_(left, left)])
        costs = ((inverse @ target[left]) ** 2).sum(axis=1) / np.diag(inverse)
        assert costs[left == unit].item() <= costs.min() * (1 + 1e-7), unit
        left = left[left != unit]


@given(
    SEEDS,
    st.sampled_from([(4, 4), (4, 2), (4, 1), (6, 2), (6, 3), (1, 1), (3, 1)]),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([4, 40]),
    st.booleans(),
    st.data(),
)
@settings(max_examples=40, deadline=None)
def test_heads_go_by_cheapest_legal_move_through_the_waypoints(
    seed: int, heads: tuple[int, int], head_dim: int, tokens: int, hard: bool, data: st.DataObject
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
    assert_cheapest_moves(problem, path.states, per_group, head_dim, parameters, waypoints)


def assert_cheapest_moves(
    problem: Problem,
    states: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...],
    per_group: int,
    head_dim: int,
    parameters: Callable[[int, int], int],
    waypoints: list[tuple[int, int]],
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
            return float(problem.error(_columns(left, head_dim)) - error)

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
    order = channel_order(NormalEquations(gram, target), panel=2)
    assert sorted(order.tolist()) == list(range(6))
    costs = target.square().sum(dim=1)[order]
    assert costs.tolist() == sorted(costs.tolist(), reverse=True)
