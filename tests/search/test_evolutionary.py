# SPDX-License-Identifier: Apache-2.0
"""The search on objectives whose optimum is known by enumeration."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunec.compiler.model.facts import facts_from_config
from prunec.compiler.model.layout import Layout
from prunec.compiler.search.budget import Budget, Candidate
from prunec.compiler.search.evolutionary import (
    Settings,
    State,
    evolve,
    generation_cost,
)
from prunec.compiler.search.space import Space

LENGTH, STEP = 8, 16
PATH = ((4, 2), (2, 2), (2, 1), (1, 1), (0, 0))


def _space(layers: int = 3, sparsity: float = 0.5) -> Space:
    facts = facts_from_config(
        {
            "model_type": "llama",
            "vocab_size": 100,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
        }
    )
    return Space(Budget(facts, sparsity, STEP, False, lambda queries, kv: True), (PATH,) * layers)


class Separable:
    """Every sublayer adds a cost of its own that falls with its size; each window adds noise."""

    def __init__(self, space: Space, seed: int) -> None:
        rng = np.random.default_rng(seed)
        layers = len(space.paths)
        self.attention = [
            dict(zip(PATH, np.sort(rng.exponential(size=5)), strict=True)) for _ in range(layers)
        ]
        falling = [np.sort(rng.exponential(size=5))[::-1] for _ in range(layers)]
        self.mlp = [dict(zip(range(0, 65, 16), costs, strict=True)) for costs in falling]
        self.token_forwards = 0
        self.calls: list[tuple[Layout, int]] = []

    def cost(self, layout: Layout) -> float:
        return float(
            sum(
                attention[spec.query_heads, spec.kv_heads] + mlp[spec.ffn]
                for spec, attention, mlp in zip(layout, self.attention, self.mlp, strict=True)
            )
        )

    def divergences(self, layout: Layout, windows: int) -> Tensor:
        self.token_forwards += windows * LENGTH
        self.calls.append((layout, windows))
        noise = np.random.default_rng(abs(hash(layout))).standard_normal(windows) * 0.05
        return torch.from_numpy(self.cost(layout) + noise)


def _start(space: Space) -> Candidate:
    return Candidate.of(space.budget.uniform_layout())


def _settings(**changes: Any) -> Settings:
    defaults: dict[str, Any] = {
        "offspring": 16,
        "step": STEP,
        "windows": 16,
        "length": LENGTH,
        "token_forwards": 40_000,
        "seed": (0, 1),
    }
    return Settings(**(defaults | changes))


@given(
    st.integers(2, 40),
    st.integers(1, 40),
    st.integers(0, 10_000),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=12, deadline=None)
def test_what_is_spent_is_what_was_run_and_never_more_than_the_budget(
    offspring: int, windows: int, extra: int, seed: int
) -> None:
    space = _space()
    scorer = Separable(space, seed)
    budget = windows * LENGTH + extra
    asked = _settings(offspring=offspring, windows=windows, token_forwards=budget, seed=(seed,))
    state = evolve(space, scorer, _start(space), asked)
    assert state.finished
    assert scorer.token_forwards == state.token_forwards <= budget
    # It ends for want of budget, or of candidates that it has not seen.
    left = budget - state.token_forwards
    assert left < generation_cost(asked) or len(state.tried) > 20
    spent = [line.token_forwards for line in state.history]
    best = [line.divergence for line in state.history]
    assert spent == sorted(spent) and spent[-1] == state.token_forwards
    assert best == sorted(best, reverse=True) and best[-1] == state.divergence
    assert [line.generation for line in state.history] == list(range(len(spent)))


def test_a_seed_decides_everything() -> None:
    space = _space()

    def run(seed: int) -> tuple[list[tuple[Layout, int]], dict[str, Any]]:
        scorer = Separable(space, 5)
        asked = _settings(seed=(seed, 1), token_forwards=8_000)
        return scorer.calls, evolve(space, scorer, _start(space), asked).as_dict()

    assert run(1) == run(1)
    assert run(1)[0] != run(2)[0]


def test_no_candidate_enters_a_race_twice_and_the_winner_has_run_on_all_windows() -> None:
    space, asked = _space(), _settings(windows=32)
    scorer = Separable(space, 3)
    state = evolve(space, scorer, _start(space), asked)
    races = Counter(layout for layout, windows in scorer.calls if windows == 2)
    assert len(races) > 50 and set(races.values()) == {1}
    assert space.budget.uniform_layout() not in races
    finals = [layout for layout, windows in scorer.calls if windows == 32]
    assert space.budget.layout(state.parent) in finals
    assert all(
        abs(space.budget.size(c) - space.budget.parameters) <= space.budget.unit / 2
        for c in (Candidate.of(layout) for layout in races)
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_a_search_that_was_stopped_anywhere_ends_as_if_it_had_not_been(seed: int) -> None:
    space, asked = _space(), _settings(token_forwards=9_000, seed=(seed, 2))
    saved: list[str] = []
    whole = evolve(
        space,
        Separable(space, seed),
        _start(space),
        asked,
        on_generation=lambda state: saved.append(json.dumps(state.as_dict())),
    )
    assert len(saved) > 5
    for text in saved:
        state = State.from_dict(json.loads(text))
        scorer = Separable(space, seed)
        resumed = evolve(space, scorer, _start(space), asked, resumed=state)
        assert resumed.as_dict() == whole.as_dict()
        spent_before = json.loads(text)["token_forwards"]
        assert scorer.token_forwards == whole.token_forwards - spent_before


def _all(space: Space) -> Iterator[Candidate]:
    layers, budget = len(space.paths), space.budget
    attention = {shape: budget.attention_size(shape) for shape in PATH}
    mlp = {width: budget.mlp_size(width) for width in budget.widths}
    for shapes in product(PATH, repeat=layers):
        for widths in product(mlp, repeat=layers):
            size = sum(attention[shape] + mlp[w] for shape, w in zip(shapes, widths, strict=True))
            if abs(size - budget.parameters) <= budget.unit / 2:
                yield Candidate(shapes, widths)


def test_it_finds_what_is_best_and_sooner_than_chance() -> None:
    space = _space()
    start, legal = _start(space), list(_all(space))
    assert len(legal) > 500
    searched, drawn = [], []
    for seed in range(4):
        scorer = Separable(space, seed)
        costs = np.sort([scorer.cost(space.budget.layout(candidate)) for candidate in legal])
        state = evolve(space, scorer, start, _settings(seed=(seed,), token_forwards=15_000))
        found = scorer.cost(space.budget.layout(state.parent))
        searched.append(float((costs < found - 1e-9).mean()))

        # As many full-length scores as the search could have bought, of mutants of the start.
        rng = np.random.default_rng(seed)
        mutants = [space.mutate(start, STEP, rng, 4) for _ in range(15_000 // (16 * LENGTH))]
        best = min(scorer.cost(space.budget.layout(m)) for m in mutants if m is not None)
        drawn.append(float((costs < best - 1e-9).mean()))
    # Share of all legal layouts that are better: near the best, and nearer than chance.
    assert np.mean(searched) < 0.03
    assert np.mean(searched) < np.mean(drawn)


def test_a_space_of_one_candidate_ends_at_once() -> None:
    space = Space(_space(1).budget, (((2, 2),),))
    start = _start(space)
    state = evolve(space, Separable(space, 0), Candidate(((2, 2),), start.widths), _settings())
    assert state.finished
    assert state.parent == Candidate(((2, 2),), start.widths)
