# SPDX-License-Identifier: Apache-2.0
"""The published search: what it proposes, what it spends, and that it can be stopped."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunec.compiler.search.grid import level_sizes
from prunec.compiler.search.published import (
    Grid,
    Levels,
    Settings,
    State,
    evolve,
    generation_cost,
    mutate,
    offspring_of,
)

LENGTH = 8


def grid_of(layers: int = 4) -> Grid:
    """Heads from 3 and 4 of 8, neurons from 40 of 96: the outer levels are cut off."""
    heads = [level_sizes(3 + index % 2, 1, 8) for index in range(layers)]
    return [*heads, *[level_sizes(40, 16, 96) for _ in range(layers)]]


def totals(grid: Grid, levels: Levels) -> tuple[int, int]:
    kept = [sizes[number] for sizes, number in zip(grid, levels, strict=True)]
    half = len(kept) // 2
    return sum(kept[:half]), sum(kept[half:])


@given(st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_mutants_keep_what_attention_and_mlp_weigh(layers: int, seed: int) -> None:
    grid, rng = grid_of(layers), np.random.default_rng(seed)
    levels = (0,) * (2 * layers)
    for _ in range(40):
        child = mutate(levels, grid, rng)
        assert all(number in sizes for number, sizes in zip(child, grid, strict=True))
        assert totals(grid, child) == totals(grid, (0,) * (2 * layers))
        moved = sum(abs(a - b) for a, b in zip(child, levels, strict=True))
        assert moved % 2 == 0 and moved <= 8
        levels = child


def test_one_to_four_moves_are_made_few_more_often() -> None:
    grid, rng = grid_of(16), np.random.default_rng(0)
    start = (0,) * 32
    moves = Counter(sum(map(abs, mutate(start, grid, rng))) // 2 for _ in range(3000))
    assert set(moves) <= {0, 1, 2, 3, 4}
    # The smaller of two draws: 7, 5, 3 and 1 of 16, some of them undone by the next.
    expected = [7, 5, 3, 1]
    for number, share in enumerate(expected, start=1):
        assert moves[number] / 3000 == pytest.approx(share / 16, abs=0.05)


def test_offspring_are_distinct_and_unlike_their_parent() -> None:
    grid, parent = grid_of(), (0,) * 8
    pool = offspring_of(parent, grid, 64, np.random.default_rng(1))
    assert len(pool) == len({*pool}) == 64 and parent not in pool
    # Of one layer, or two that cannot move, nothing can be made; it ends all the same.
    assert offspring_of((0, 0), grid_of(1), 8, np.random.default_rng(0)) == []
    stuck = [{0: 1}, {0: 1}, {0: 4}, {0: 4}]
    assert offspring_of((0,) * 4, stuck, 8, np.random.default_rng(0)) == []


class Separable:
    """Every sublayer costs what its level says; each window adds noise."""

    def __init__(self, grid: Grid, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.costs = [{number: rng.exponential() for number in sizes} for sizes in grid]
        self.calls: list[tuple[Levels, slice]] = []

    @property
    def token_forwards(self) -> int:
        return sum(LENGTH * (windows.stop - windows.start) for _, windows in self.calls)

    def divergence(self, levels: Levels, windows: slice) -> float:
        self.calls.append((levels, windows))
        noise = np.random.default_rng(abs(hash(levels))).standard_normal(windows.stop)
        cost = sum(costs[number] for costs, number in zip(self.costs, levels, strict=True))
        return float(cost + 0.1 * noise[windows].mean())


def settings_of(**changes: Any) -> Settings:
    defaults: dict[str, Any] = {
        "offspring": 32,
        "generations": 50,
        "windows": 64,
        "length": LENGTH,
        "token_forwards": 10**9,
        "seed": (0, 1),
    }
    return Settings(**(defaults | changes))


def test_a_generation_costs_what_the_paper_reports() -> None:
    # 2,048 tokens for 128, 16,384 for 16, 131,072 for 4 and the parent: 1.18 M.
    assert generation_cost(128, 64, 2048) == 9 * 131_072


def test_a_generation_narrows_down_in_three_stages_and_the_parent_enters_the_last() -> None:
    grid = grid_of(8)
    scorer = Separable(grid, 0)
    state = evolve(grid, scorer, settings_of(offspring=128, generations=1))
    (start, everything), *rest = scorer.calls
    assert start == (0,) * 16 and everything == slice(0, 64)
    widths = [windows.stop - windows.start for _, windows in rest]
    assert widths == [1] * 128 + [8] * 16 + [64] * 5
    assert rest[-1][0] == start or start in [levels for levels, _ in rest[-5:]]
    assert len({(windows.start, windows.stop) for _, windows in rest}) == 3  # common to a stage
    survivors = [levels for levels, _ in rest[128:144]]
    assert {levels for levels, _ in rest[144:]} <= {*survivors, start}
    assert state.token_forwards == scorer.token_forwards
    assert len(state.history) == 2


@given(st.integers(2, 40), st.integers(1, 70), st.integers(0, 60_000), st.integers(0, 2**32 - 1))
def test_what_is_spent_is_what_was_run_and_never_more_than_the_budget(
    offspring: int, windows: int, extra: int, seed: int
) -> None:
    grid = grid_of()
    scorer = Separable(grid, seed)
    budget = windows * LENGTH + extra
    asked = settings_of(
        offspring=offspring, windows=windows, generations=4, token_forwards=budget, seed=(seed,)
    )
    state = evolve(grid, scorer, asked)
    assert scorer.token_forwards == state.token_forwards <= budget
    left = budget - state.token_forwards
    assert left < generation_cost(offspring, windows, LENGTH) or len(state.history) == 5
    best = [line.divergence for line in state.history]
    assert best == sorted(best, reverse=True) and best[-1] == state.divergence


@pytest.mark.parametrize("seed", [0, 1])
def test_a_search_that_was_stopped_anywhere_ends_as_if_it_had_not_been(seed: int) -> None:
    grid, asked = grid_of(), settings_of(generations=6, seed=(seed, 2))
    saved: list[str] = []
    whole = evolve(
        grid,
        Separable(grid, seed),
        asked,
        on_generation=lambda state: saved.append(json.dumps(state.as_dict())),
    )
    assert len(saved) == 8  # the centre, six generations, the end
    assert whole.divergence < whole.history[0].divergence
    for text in saved:
        scorer = Separable(grid, seed)
        state = State.from_dict(json.loads(text))
        resumed = evolve(grid, scorer, asked, resumed=state)
        assert resumed.as_dict() == whole.as_dict()
        spent_before = json.loads(text)["token_forwards"]
        assert scorer.token_forwards == whole.token_forwards - spent_before


def test_a_seed_decides_everything() -> None:
    grid = grid_of()

    def run(seed: int) -> list[tuple[Levels, slice]]:
        scorer = Separable(grid, 5)
        evolve(grid, scorer, settings_of(generations=3, seed=(seed, 1)))
        return scorer.calls

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_a_candidate_that_breaks_down_never_wins() -> None:
    grid = grid_of()

    class Broken(Separable):
        def divergence(self, levels: Levels, windows: slice) -> float:
            found = super().divergence(levels, windows)
            return found if levels == (0,) * 8 else float("nan")

    state = evolve(grid, Broken(grid, 0), settings_of(generations=2))
    assert state.parent == (0,) * 8
