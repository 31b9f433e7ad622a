# SPDX-License-Identifier: Apache-2.0
"""The descent between layouts, on objectives whose slopes are known."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunec.compiler.model.facts import facts_from_config
from prunec.compiler.model.layout import Layout
from prunec.compiler.search.allowance import Allowance
from prunec.compiler.search.budget import Budget, Candidate, Ceiling
from prunec.compiler.search.level_relaxation import LevelRelaxation, sites_around
from prunec.compiler.search.price import kv_price
from prunec.compiler.search.relaxation import Numbers, Site
from prunec.compiler.search.searcher import Settings, State, search
from prunec.compiler.search.space import Space

LENGTH, STEP, WINDOWS = 8, 16, 16
PATH = ((4, 2), (2, 1), (1, 1), (0, 0))
FACTS = facts_from_config(
    {
        "model_type": "llama",
        "vocab_size": 100,
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
)


def _space(target: float | Ceiling = 0.5, *, tied: bool = False) -> Space:
    budget = Budget(FACTS, target, STEP, tied, lambda q, kv: kv > 0 or not tied)
    path = PATH[:-1] if tied else PATH
    return Space(budget, (path,) * FACTS.layers)


TARGETS: dict[str, float | Ceiling] = {
    "sparsity": 0.5,
    "kv": Ceiling(kv_price(FACTS, 2), 150),
}


class Additive:
    """Every layer's sublayers cost more the less is left of them, each with a weight of its own.

    A mixture costs the square of the mean of its sizes' roots, so that slopes change on the way.
    """

    def __init__(self, space: Space, seed: int) -> None:
        self.space = space
        self.sites = sites_around(space, _start(space), STEP)
        rng = np.random.default_rng(seed)
        self.attention, self.mlp = rng.exponential(size=(2, FACTS.layers))
        self.windows_run = 0
        self.batches: list[tuple[int, ...]] = []
        self.released = False

    def _roots(self, site: Site) -> Numbers:
        weight = (self.attention if site.attention else self.mlp)[list(site.layers)].sum()
        left = [s.query_heads / 4 if site.attention else s.ffn / 96 for s in site.sizes]
        roots: Numbers = np.sqrt(weight) * (1.2 - np.array(left))
        return roots

    def cost(self, layout: Layout) -> float:
        attention = self.attention @ [(1.2 - spec.query_heads / 4) ** 2 for spec in layout]
        mlp = self.mlp @ [(1.2 - spec.ffn / 96) ** 2 for spec in layout]
        return float(attention + mlp)

    def slopes(self, probabilities: Numbers, windows: Sequence[int]) -> tuple[float, Numbers]:
        assert len({*windows} & {*range(WINDOWS)}) == len(windows) > 0
        self.batches.append(tuple(windows))
        np.testing.assert_allclose(probabilities.sum(axis=1), 1)
        self.windows_run += 3 * len(windows)
        value, slopes = 0.0, np.zeros_like(probabilities)
        for p, row, site in zip(probabilities, slopes, self.sites, strict=True):
            roots = self._roots(site)
            mean = float(p[: len(roots)] @ roots)
            value += mean**2
            row[: len(roots)] = 2 * mean * roots
        return value, slopes

    def release(self) -> None:
        self.released = True

    def rebase(self, layout: Layout) -> Tensor:
        return self.divergences(layout, range(WINDOWS))

    def scored(self, layouts: Sequence[Layout], windows: Sequence[int]) -> Iterator[Tensor]:
        return (self.divergences(layout, windows) for layout in layouts)

    def divergences(self, layout: Layout, windows: Sequence[int]) -> Tensor:
        self.windows_run += len(windows)
        return torch.full((len(windows),), self.cost(layout)).double()


def _start(space: Space) -> Candidate:
    return Candidate.of(space.budget.uniform_layout())


def _searcher(space: Space, oracle: Additive) -> LevelRelaxation:
    return LevelRelaxation(space, _start(space), oracle.sites, oracle)


def _run(space: Space, oracle: Additive, tokens: int, **options: Any) -> State:
    asked = Settings(8, STEP, WINDOWS, LENGTH, options.pop("seed", (0, 1)))
    resumed: State | None = options.get("resumed")
    allowance = Allowance(tokens, used_tokens=resumed.token_forwards if resumed else 0)
    searcher = _searcher(space, oracle)
    return search(searcher, space, oracle, _start(space), asked, allowance, **options)


@settings(max_examples=15)
@given(st.integers(0, 20_000), st.sampled_from(sorted(TARGETS)), st.booleans())
def test_steps_and_races_together_never_cost_more_than_the_budget(
    extra: int, target: str, tied: bool
) -> None:
    space = _space(TARGETS[target], tied=tied)
    oracle, tokens = Additive(space, 1), WINDOWS * LENGTH + extra
    state = _run(space, oracle, tokens)
    assert state.finished and space.budget.fits(state.parent)
    assert oracle.windows_run * LENGTH == state.token_forwards <= tokens
    assert [line.generation for line in state.history] == list(range(len(state.history)))
    relaxed = state.notes.get("relaxation", {"done": 0, "batch": 0})
    assert relaxed["done"] * relaxed["batch"] * 3 * LENGTH <= extra / 2
    assert relaxed["done"] or extra < 8 * LENGTH


def _without_time(state: State) -> dict[str, Any]:
    return state.as_dict() | {"seconds": 0}


def test_a_descent_that_was_stopped_anywhere_ends_as_if_it_had_not_been() -> None:
    space, tokens = _space(), 9_000
    saved: list[str] = []
    oracle = Additive(space, 2)
    whole = _run(
        space,
        oracle,
        tokens,
        on_generation=lambda state: saved.append(json.dumps(state.as_dict(), allow_nan=False)),
    )
    descending = [json.loads(text)["notes"].get("relaxation", {}).get("done") for text in saved]
    assert descending[:3] == [None, 10, 20] and descending[-2] == descending[-1]
    for text in [*saved[:3], *saved[3::8]]:
        again = Additive(space, 2)
        resumed = _run(space, again, tokens, resumed=State.from_dict(json.loads(text)))
        assert _without_time(resumed) == _without_time(whole)
        assert (again.windows_run - WINDOWS) * LENGTH <= tokens - json.loads(text)["token_forwards"]
    assert _without_time(_run(space, Additive(space, 2), tokens)) == _without_time(whole)
    assert oracle.released


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(TARGETS)), st.booleans())
def test_a_mixture_costs_what_is_asked_for_and_slopes_lead_along_it(
    seed: int, target: str, tied: bool
) -> None:
    space, rng = _space(TARGETS[target], tied=tied), np.random.default_rng(seed)
    oracle = Additive(space, seed)
    searcher = _searcher(space, oracle)
    most = max(len(site.sizes) for site in oracle.sites)
    logits = rng.normal(size=(len(oracle.sites), most))

    def cost(probabilities: Numbers) -> float:
        sites = zip(probabilities, oracle.sites, strict=True)
        return float(sum(p[: len(site.costs)] @ site.costs for p, site in sites))

    probabilities = searcher.probabilities(logits)
    assert cost(probabilities) == pytest.approx(space.budget.limit, rel=1e-6)
    _, slopes = oracle.slopes(probabilities, range(1))
    slopes = searcher.through_probabilities(slopes, probabilities)
    for at in np.ndindex(*logits.shape):
        change = np.zeros_like(logits)
        change[at] = 1e-3
        above, below = (
            oracle.slopes(searcher.probabilities(logits + sign * change), range(1))[0]
            for sign in (1, -1)
        )
        assert slopes[at] == pytest.approx((above - below) / 2e-3, rel=1e-3, abs=1e-5)


def test_a_limit_out_of_reach_leaves_the_nearest_sizes() -> None:
    space = _space()
    oracle = Additive(space, 0)
    for sparsity, nearest in ((1.1, np.argmin), (-0.1, np.argmax)):
        far = replace(space, budget=replace(space.budget, target=sparsity))
        searcher = LevelRelaxation(far, _start(space), oracle.sites, oracle)
        probabilities = searcher.probabilities(np.zeros((len(oracle.sites), 7)))
        for p, site in zip(probabilities, oracle.sites, strict=True):
            assert p[nearest(site.costs)] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_the_descent_alone_comes_near_the_best_and_leaves_little_to_round(seed: int) -> None:
    space = _space()
    oracle = Additive(space, seed)
    states: list[dict[str, Any]] = []
    _run(space, oracle, 30_000, on_generation=lambda state: states.append(state.as_dict()))
    first_race = next(state for state in states if state["observations"])
    logits = np.array(first_race["notes"]["relaxation"]["logits"])
    probabilities = _searcher(space, oracle).probabilities(logits)
    assert np.median(probabilities.max(axis=1)) > 0.9
    best, start = states[-1]["parent_scores"][0], states[0]["parent_scores"][0]
    found = first_race["parent_scores"][0]
    assert found - best < 0.1 * (start - best)


def test_what_need_not_be_cut_is_not_mixed() -> None:
    space = _space(TARGETS["kv"])
    sites = sites_around(space, _start(space), STEP)
    assert all(len(site.sizes) == 1 and site.sizes[0].ffn == 96 for site in sites[1::2])
    assert all(len(site.sizes) > 2 for site in sites[::2])
    for site in sites:  # the smallest first
        assert sorted(site.sizes, key=lambda spec: (spec.query_heads, spec.ffn)) == [*site.sizes]
    tied = sites_around(_space(tied=True), _start(_space(tied=True)), STEP)
    assert [site.layers for site in tied] == [range(4), range(4)]
    one = FACTS.layers * _space().budget.mlp_size(tied[1].sizes[0].ffn)
    assert tied[1].costs[0] == one


def test_a_step_that_overflows_is_left_out() -> None:
    class Overflowing(Additive):
        def slopes(self, probabilities: Numbers, windows: Sequence[int]) -> tuple[float, Numbers]:
            value, slopes = super().slopes(probabilities, windows)
            return value, slopes * (np.nan if windows[0] % 2 else 1.0)

    space = _space()
    state = _run(space, Overflowing(space, 3), 9_000)
    assert np.isfinite(state.notes["relaxation"]["logits"]).all()
    assert state.parent != _start(space)


def test_no_window_is_left_out_of_every_turn_of_a_descent() -> None:
    space = _space()
    oracle = Additive(space, 3)
    asked = Settings(8, STEP, WINDOWS, LENGTH, (0, 1))
    searcher = _searcher(space, oracle)
    state = State(_start(space), [1.0] * WINDOWS, [1.0] * WINDOWS, 0)
    batch = WINDOWS // 2 + 1  # one full batch a turn; the others are left over
    descent = replace(searcher._begin(asked, 10_000), steps=40, batch=batch)
    for _ in range(descent.steps):
        searcher._step(descent, state, asked)
    assert {len(windows) for windows in oracle.batches} == {batch}
    seen = Counter(chain(*oracle.batches))
    assert len(seen) == WINDOWS and min(seen.values()) > 5
