# SPDX-License-Identifier: Apache-2.0
"""Evolutionary search over layouts, as in Týr-the-Pruner and EvoPress: mutate, race, keep the best.

Every generation mutates one parent into many offspring and narrows them down on growing numbers
of tokens; the parent stays unless an offspring is better on all of them.

Source: arXiv 2503.09657 §3.3; transfers between attention and MLP ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from prunec.compiler.model.layout import Layout
from prunec.compiler.search.budget import Candidate
from prunec.compiler.search.space import Space

#: Each stage keeps a quarter of its candidates and gives them four times the tokens.
STAGES = 3
NARROWING = 4

MOST_TRANSFERS = 4
_TRIES = 20  # mutations per wanted offspring before a generation is content with fewer


class Scorer(Protocol):
    token_forwards: int

    def divergences(self, layout: Layout, windows: int) -> Tensor: ...


@dataclass(frozen=True)
class Settings:
    """offspring: per generation; step: neurons in one MLP level; windows × length: the tokens of
    the last stage; token_forwards: what the search may spend; seed: of all random choices."""

    offspring: int
    step: int
    windows: int
    length: int
    token_forwards: int
    seed: tuple[int, ...]


@dataclass(frozen=True)
class Generation:
    """One line of the search's history: the best so far, and what had been spent by then."""

    generation: int
    token_forwards: int
    divergence: float


@dataclass
class State:
    """All that a search needs to go on after a generation.

    tried: hashes of all candidates so far; scores are deterministic, so none is raced twice
    """

    parent: Candidate
    divergence: float
    token_forwards: int
    history: list[Generation] = field(default_factory=list)
    tried: set[int] = field(default_factory=set)
    finished: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"tried": sorted(self.tried)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> State:
        shapes = tuple((queries, kv) for queries, kv in data["parent"]["shapes"])
        return cls(
            Candidate(shapes, tuple(data["parent"]["widths"])),
            data["divergence"],
            data["token_forwards"],
            [Generation(**line) for line in data["history"]],
            set(data["tried"]),
            data["finished"],
        )


def generation_cost(settings: Settings) -> int:
    """Token-forwards of one full generation."""
    return _cost(_stages(settings, settings.offspring), settings)


def evolve(
    space: Space,
    scorer: Scorer,
    start: Candidate,
    settings: Settings,
    *,
    resumed: State | None = None,
    on_generation: Callable[[State], None] = lambda state: None,
) -> State:
    """Search from `start` until the next generation would overdraw the budget.

    `on_generation` is called after every generation with a state from which a later call may be
    `resumed`; the outcome is the same as that of an uninterrupted search.
    """

    def score(candidate: Candidate, windows: int) -> float:
        divergence = float(scorer.divergences(space.budget.layout(candidate), windows).mean())
        return divergence if math.isfinite(divergence) else math.inf  # a NaN would never lose

    state = resumed
    if state is None:
        divergence, spent = score(start, settings.windows), settings.windows * settings.length
        first = Generation(0, spent, divergence)
        state = State(start, divergence, spent, [first], {hash(start)})
        on_generation(state)
    while not state.finished:
        number = state.history[-1].generation + 1
        # A generator of its own for every generation: nothing to carry over a resume.
        rng = np.random.default_rng([*settings.seed, number])
        pool = _offspring(space, state, settings, rng)
        stages = _stages(settings, len(pool))
        cost = _cost(stages, settings)
        state.finished = not pool or state.token_forwards + cost > settings.token_forwards
        if not state.finished:
            state.tried.update(map(hash, pool))
            for count, windows in stages:
                scores = {candidate: score(candidate, windows) for candidate in pool[:count]}
                pool = sorted(scores, key=scores.__getitem__)
            if scores[pool[0]] < state.divergence:
                state.parent, state.divergence = pool[0], scores[pool[0]]
            state.token_forwards += cost
            state.history.append(Generation(number, state.token_forwards, state.divergence))
        on_generation(state)
    return state


def _stages(settings: Settings, offspring: int) -> list[tuple[int, int]]:
    """(candidates, windows) of every stage of a generation."""
    stages = []
    for stage in range(STAGES):
        count = max(1, offspring // NARROWING**stage)
        windows = max(1, settings.windows // NARROWING ** (STAGES - 1 - stage))
        stages.append((count, windows))
    return stages


def _cost(stages: list[tuple[int, int]], settings: Settings) -> int:
    return sum(count * windows * settings.length for count, windows in stages)


def _offspring(
    space: Space, state: State, settings: Settings, rng: np.random.Generator
) -> list[Candidate]:
    """Distinct children of the parent that were not tried before."""
    pool: dict[Candidate, None] = {}
    for _ in range(settings.offspring * _TRIES):
        child = space.mutate(state.parent, settings.step, rng, MOST_TRANSFERS)
        if child is not None and hash(child) not in state.tried:
            pool[child] = None
        if len(pool) == settings.offspring:
            break
    return list(pool)
