# SPDX-License-Identifier: Apache-2.0
"""The searchers on objectives whose optimum is known by enumeration."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, product
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
from prunec.compiler.search.budget import Budget, Candidate
from prunec.compiler.search.evolutionary import Evolutionary
from prunec.compiler.search.random_layouts import RandomLayouts
from prunec.compiler.search.remembered import Remembered
from prunec.compiler.search.searcher import Searcher, Settings, State, search
from prunec.compiler.search.space import Space
from prunec.compiler.search.surrogate import ErrorCurves, Surrogate

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
    """Every sublayer adds a cost of its own that falls with its size; each window adds noise.

    `curves` know the costs up to a factor for each sublayer, as a supernet knows errors.
    """

    def __init__(self, space: Space, seed: int, noise: float = 0.05) -> None:
        rng = np.random.default_rng(seed)
        layers = len(space.paths)
        self.attention = [
            dict(zip(PATH, np.sort(rng.exponential(size=5)), strict=True)) for _ in range(layers)
        ]
        falling = [np.sort(rng.exponential(size=5))[::-1] for _ in range(layers)]
        self.mlp = [dict(zip(range(0, 65, 16), costs, strict=True)) for costs in falling]
        factors = rng.uniform(0.3, 3.0, size=(2, layers))
        self.curves = ErrorCurves(
            [
                {shape: cost * factor for shape, cost in costs.items()}
                for costs, factor in zip(self.attention, factors[0], strict=True)
            ],
            [
                np.interp(np.arange(65), list(costs), list(costs.values())) * factor
                for costs, factor in zip(self.mlp, factors[1], strict=True)
            ],
        )
        self.costs = [np.interp(np.arange(65), list(c), list(c.values())) for c in self.mlp]
        self.noise = noise
        self.windows_scored = 0
        self.calls: list[tuple[Layout, list[int]]] = []

    def cost(self, layout: Layout) -> float:
        return float(
            sum(
                attention[spec.query_heads, spec.kv_heads] + mlp[spec.ffn]
                for spec, attention, mlp in zip(layout, self.attention, self.costs, strict=True)
            )
        )

    def rebase(self, layout: Layout) -> Tensor:
        return self.divergences(layout, range(16))

    def scored(self, layouts: Sequence[Layout], windows: Sequence[int]) -> Iterator[Tensor]:
        return (self.divergences(layout, windows) for layout in layouts)

    def divergences(self, layout: Layout, windows: Sequence[int]) -> Tensor:
        windows = list(windows)
        self.windows_scored += len(windows)
        self.calls.append((layout, windows))
        # A candidate is made of numbers alone, so that its hash is the same in every process.
        rng = np.random.default_rng(abs(hash(Candidate.of(layout))))
        noise = rng.standard_normal(16)[windows]
        return torch.from_numpy(self.cost(layout) + self.noise * noise)


Windows = tuple[int, ...]
Make = Callable[[Space, Separable], Searcher]
SEARCHERS: dict[str, Make] = {
    "surrogate": lambda space, scorer: Surrogate(space, scorer.curves, _start(space)),
    "evolutionary": lambda space, scorer: Evolutionary(space),
    "random": lambda space, scorer: RandomLayouts(space),
}
every_searcher = pytest.mark.parametrize("kind", SEARCHERS)


def _run(kind: str, space: Space, scorer: Separable, tokens: int, **options: Any) -> State:
    """A search of a scorer with so many token-forwards; `options` of Settings or of `search`."""
    changes = {k: options.pop(k) for k in ("offspring", "seed") if k in options}
    resumed: State | None = options.get("resumed")
    allowance = Allowance(tokens, used_tokens=resumed.token_forwards if resumed else 0)
    through = options.pop("through", scorer)
    searcher = SEARCHERS[kind](space, scorer)
    asked = _settings(**changes)
    return search(searcher, space, through, _start(space), asked, allowance, **options)


def _start(space: Space) -> Candidate:
    return Candidate.of(space.budget.uniform_layout())


def _settings(**changes: Any) -> Settings:
    defaults: dict[str, Any] = {
        "offspring": 16,
        "step": STEP,
        "windows": 16,
        "length": LENGTH,
        "seed": (0, 1),
    }
    return Settings(**(defaults | changes))


@every_searcher
@given(st.integers(2, 40), st.integers(0, 10_000), st.integers(0, 2**32 - 1))
@settings(max_examples=6, deadline=None)
def test_what_is_spent_is_what_was_run_and_never_more_than_the_budget(
    kind: str, offspring: int, extra: int, seed: int
) -> None:
    space = _space()
    scorer = Separable(space, seed)
    tokens = 16 * LENGTH + extra
    state = _run(kind, space, scorer, tokens, offspring=offspring, seed=(seed,))
    assert state.finished
    assert scorer.windows_scored * LENGTH == state.token_forwards <= tokens
    # It ends for want of budget, or of candidates that it has not seen.
    assert tokens - state.token_forwards < 20 * LENGTH or len(state.tried) > 20
    spent = [line.token_forwards for line in state.history]
    best = [line.divergence for line in state.history]
    assert spent == sorted(spent) and spent[-1] == state.token_forwards
    assert best == sorted(best, reverse=True) and best[-1] == state.divergence
    assert [line.generation for line in state.history] == list(range(len(spent)))


@every_searcher
def test_a_seed_decides_everything(kind: str) -> None:
    space = _space()

    def run(seed: int) -> tuple[list[tuple[Layout, list[int]]], dict[str, Any]]:
        scorer = Separable(space, 5)
        state = _run(kind, space, scorer, 8_000, seed=(seed, 1))
        return scorer.calls, _without_time(state)

    assert run(1) == run(1)
    assert run(1)[0] != run(2)[0]


@every_searcher
def test_every_race_begins_with_other_windows_which_are_the_same_for_all_that_run_in_it(
    kind: str,
) -> None:
    space = _space()

    def run(seed: int, resumed: State | None = None) -> tuple[list[set[Windows]], list[str]]:
        """Windows of every race's stages, and the states after the races."""
        scorer = Separable(space, 5)
        races: list[set[Windows]] = []
        saved: list[str] = []

        def finished(state: State) -> None:
            stages = {tuple(windows) for _, windows in scorer.calls} - {everything}
            if stages:
                races.append(stages)
                saved.append(json.dumps(state.as_dict()))
            scorer.calls.clear()

        _run(kind, space, scorer, 9_000, seed=(seed, 1), resumed=resumed, on_generation=finished)
        return races, saved

    everything = tuple(range(16))  # the start's
    races, saved = run(0)
    assert len(races) > 8
    for stages in races[1:]:  # the surrogate's first are probes
        assert sorted(map(len, stages)) == [1, 3, 12]
        assert sorted(chain(*stages)) == [*everything]
    assert len({min(stages, key=len) for stages in races[1:]}) > 4
    assert run(0)[0] == races != run(1)[0]
    assert run(0, State.from_dict(json.loads(saved[2])))[0] == races[3:]


@pytest.mark.parametrize("misleading", range(16))
def test_a_window_that_misleads_does_not_decide_a_search(misleading: int) -> None:
    """Whichever it is: on that window what is worse looks better, by less than on all others."""
    space = _space()

    class Misleading(Separable):
        def divergences(self, layout: Layout, windows: Sequence[int]) -> Tensor:
            scores = super().divergences(layout, windows)
            return torch.where(torch.tensor(windows) == misleading, 10 - scores, scores)

    honest = _run("evolutionary", space, Separable(space, 3, noise=0.0), 9_000)
    misled = _run("evolutionary", space, Misleading(space, 3, noise=0.0), 9_000)
    cost = Separable(space, 3).cost
    start, best, found = (
        cost(space.budget.layout(candidate))
        for candidate in (_start(space), honest.parent, misled.parent)
    )
    assert found - best < 0.2 * (start - best)


def test_what_one_window_says_is_as_uncertain_as_what_others_say_a_window() -> None:
    space = _space()
    scorer = Separable(space, 2, noise=0.5)
    state = _run("random", space, scorer, 40 * 16 * LENGTH)
    ran = Counter(layout for layout, windows in scorer.calls for _ in windows)
    alone = [o for o in state.observations if ran[space.budget.layout(o.candidate)] == 1]
    assert len(alone) > 50
    start = scorer.cost(space.budget.layout(_start(space)))
    wrong = [o.difference - (scorer.cost(space.budget.layout(o.candidate)) - start) for o in alone]
    claimed = np.sqrt(np.mean([o.error**2 for o in alone]))
    assert 0.8 < np.sqrt(np.mean(np.square(wrong))) / claimed < 1.25


@every_searcher
def test_a_winner_is_legal_has_the_size_and_has_run_on_all_windows(kind: str) -> None:
    space = _space()
    scorer = Separable(space, 3)
    state = _run(kind, space, scorer, 8_000)
    assert space.budget.fits(state.parent)
    ran = [
        windows for layout, windows in scorer.calls if layout == space.budget.layout(state.parent)
    ]
    assert {window for windows in ran for window in windows} == {*range(16)}
    # No window of a contender is scored twice.
    races = Counter((layout, window) for layout, windows in scorer.calls for window in windows)
    contenders = [layout for layout, _ in races if space.budget.fits(Candidate.of(layout))]
    assert len(set(contenders)) > 20
    assert max(races.values()) == 1 or kind == "surrogate"  # a probe may contend later
    if kind != "surrogate":  # its probes are larger or smaller, and never win
        assert len(contenders) == len(races)


@every_searcher
@given(
    st.sets(st.sampled_from([s for s in PATH if s != (2, 1)])),
    st.sampled_from([8, 16, 24]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=10, deadline=None)
def test_nothing_is_tried_that_an_export_cannot_express(
    kind: str, forbidden: set[tuple[int, int]], multiple_of: int, tied: bool, seed: int
) -> None:
    def is_legal(queries: int, kv: int) -> bool:
        return (queries, kv) not in forbidden

    path = tuple(shape for shape in PATH if is_legal(*shape))
    budget = Budget(_space().budget.facts, 0.5, multiple_of, tied, is_legal)
    space = Space(budget, (path,) * 3)
    scorer = Separable(space, seed)
    start = Candidate(((2, 1),) * 3, _start(space).widths)
    searcher = SEARCHERS[kind](space, scorer)
    asked = _settings(step=2 * multiple_of)
    search(searcher, space, scorer, start, asked, Allowance(2_000))
    for layout, _ in scorer.calls:
        assert {(spec.query_heads, spec.kv_heads) for spec in layout} <= set(path)
        assert {spec.ffn for spec in layout} <= set(budget.widths)
        assert len(set(layout)) == 1 or not tied


@every_searcher
def test_attention_never_leaves_a_layer_that_must_have_it(kind: str) -> None:
    free = _space(sparsity=0.7)
    budget = Budget(
        free.budget.facts, 0.7, STEP, False, lambda queries, kv: True, attended=frozenset({0})
    )
    space = Space.within(budget, (PATH,) * 3)
    assert space.paths == (PATH[:-1], PATH, PATH)
    tried = {}
    for name, each in (("free", free), ("attended", space)):
        scorer = Separable(each, 3)
        searcher = SEARCHERS[kind](each, scorer)
        search(searcher, each, scorer, _start(each), _settings(), Allowance(6_000))
        tried[name] = [
            {index for index, spec in enumerate(layout) if not spec.attention}
            for layout, _ in scorer.calls
        ]
    assert any(0 in absent for absent in tried["free"])
    assert any(absent for absent in tried["attended"])
    assert not any(0 in absent for absent in tried["attended"])


@every_searcher
@pytest.mark.parametrize("seed", [0, 1])
def test_a_search_that_was_stopped_anywhere_ends_as_if_it_had_not_been(
    kind: str, seed: int
) -> None:
    space, tokens = _space(), 4_000
    saved: list[str] = []
    whole = _run(
        kind,
        space,
        Separable(space, seed),
        tokens,
        seed=(seed, 2),
        on_generation=lambda state: saved.append(json.dumps(state.as_dict())),
    )
    assert len(saved) > 3
    for text in saved:
        state = State.from_dict(json.loads(text))
        resumed = _run(kind, space, Separable(space, seed), tokens, seed=(seed, 2), resumed=state)
        assert _without_time(resumed) == _without_time(whole)


@every_searcher
def test_a_search_goes_on_inside_a_generation_without_running_a_score_again(kind: str) -> None:
    space, tokens = _space(), 5_000

    class PowerCutError(Exception):
        pass

    class Failing(Separable):
        left = 60

        def divergences(self, layout: Layout, windows: Sequence[int]) -> Tensor:
            self.left -= 1
            if not self.left:
                raise PowerCutError
            return super().divergences(layout, windows)

    whole = _run(kind, space, Separable(space, 4), tokens)
    states: list[State] = []
    failing = Failing(space, 4)
    log: dict[str, list[float]] = {}
    noted = Remembered(failing, {}, lambda scores: None)

    def finished(state: State) -> None:
        states.append(State.from_dict(json.loads(json.dumps(state.as_dict()))))
        noted.forget()

    with pytest.raises(PowerCutError):
        _run(kind, space, failing, tokens, through=noted, on_generation=finished)
    log |= noted.scores
    assert log  # it failed inside a generation
    again = Separable(space, 4)
    through = Remembered(again, log, lambda scores: None)
    resumed = _run(kind, space, again, tokens, through=through, resumed=states[-1])
    assert _without_time(resumed) == _without_time(whole)
    run_again = {json.dumps([_plain(layout), w]) for layout, w in again.calls}
    assert not run_again & set(log)


def _without_time(state: State) -> dict[str, Any]:
    return state.as_dict() | {"seconds": 0}


def _plain(layout: Layout) -> list[list[int]]:
    return [[spec.query_heads, spec.kv_heads, spec.ffn] for spec in layout]


def test_a_clock_ends_a_search_in_time() -> None:
    space = _space()
    scorer = Separable(space, 0)
    now = 0.0

    def clock() -> float:  # a second a window, and from half time on two
        return scorer.windows_scored * (1 if scorer.windows_scored < 500 else 2)

    allowance = Allowance(None, 1500.0, clock=clock)
    asked = _settings()
    state = search(Evolutionary(space), space, scorer, _start(space), asked, allowance)
    assert state.finished and now <= clock() <= 1500.0
    assert len(state.history) > 3


def _all(space: Space) -> Iterator[Candidate]:
    layers, budget = len(space.paths), space.budget
    for shapes in product(PATH, repeat=layers):
        for widths in product(budget.widths, repeat=layers):
            if budget.fits(candidate := Candidate(shapes, widths)):
                yield candidate


def test_searchers_find_what_is_best_sooner_than_chance_and_the_surrogate_first() -> None:
    space = _space()
    legal = list(_all(space))
    assert len(legal) > 500
    better: dict[str, list[float]] = {kind: [] for kind in SEARCHERS}
    for seed in range(4):
        scorer = Separable(space, seed)
        costs = np.sort([scorer.cost(space.budget.layout(candidate)) for candidate in legal])
        for kind in SEARCHERS:
            state = _run(kind, space, Separable(space, seed), 3_000, seed=(seed,))
            found = scorer.cost(space.budget.layout(state.parent))
            better[kind].append(float((costs < found - 1e-9).mean()))
    # Share of all legal layouts that are better than the one found.
    shares = {kind: float(np.mean(values)) for kind, values in better.items()}
    assert shares["surrogate"] < 0.02
    assert shares["surrogate"] < shares["evolutionary"] < shares["random"]


def test_a_surrogate_that_misleads_is_found_out_and_dropped() -> None:
    space = _space()
    scorer = Separable(space, 1, noise=0.0)
    wrong = Separable(space, 99).curves
    # Errors that fall where the truth rises: nothing that is learnt from them helps.
    wrong = ErrorCurves(
        [{shape: 1 / (1e-3 + e) for shape, e in curve.items()} for curve in wrong.attention],
        [np.flip(curve).copy() for curve in wrong.mlp],
    )
    searcher = Surrogate(space, wrong, _start(space))
    told = search(searcher, space, scorer, _start(space), _settings(), Allowance(12_000))
    distrusted = sum(c < 0.2 for c in told.notes["rank_correlations"])
    assert distrusted > 3
    assert f"after {distrusted} of" in told.notes["fell_back"]
    honest = _run("surrogate", space, Separable(space, 1, noise=0.0), 12_000)
    assert np.mean(honest.notes["rank_correlations"][:3]) > 0.9


def test_a_space_of_one_candidate_ends_at_once() -> None:
    space = Space(_space(1).budget, (((2, 2),),))
    start = Candidate(((2, 2),), _start(space).widths)
    for searcher in (
        Surrogate(space, Separable(space, 0).curves, start),
        Evolutionary(space),
        RandomLayouts(space),
    ):
        scorer = Separable(space, 0)
        allowance = Allowance(40_000)
        state = search(searcher, space, scorer, start, _settings(), allowance)
        assert state.finished and state.parent == start
