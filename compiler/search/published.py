# SPDX-License-Identifier: Apache-2.0
"""The search of Týr-the-Pruner as it was published; needs neither weights nor torch.

A candidate is an integer level for every sublayer. A mutation moves one level between two
sublayers of the same type, so that the split between attention and MLP never changes. Every
generation is narrowed down in three stages of growing tokens; the parent enters the last one.

Source: arXiv 2503.09657 and its code. Mutations that change nothing or miss the size are drawn
anew here, a bounded number of times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

#: What the offspring and the search's tokens are divided by in every stage.
STAGES = ((1, 64), (8, 8), (32, 1))
MOST_MOVES = 4
_TRIES = 20  # draws for every move, and for every offspring

Levels = tuple[int, ...]
"""A level for the attention of every layer, then for the MLP of every layer."""

Grid = Sequence[Mapping[int, int]]
"""For every sublayer, in the order of `Levels`, the units that stay at each level it has."""


class Scorer(Protocol):
    def divergence(self, levels: Levels, windows: slice) -> float:
        """Nats per token from the dense model, over some windows of the search's tokens."""


@dataclass(frozen=True)
class Settings:
    """windows × length: the tokens of the last stage; token_forwards: what may be spent."""

    offspring: int
    generations: int
    windows: int
    length: int
    token_forwards: int
    seed: tuple[int, ...]


@dataclass(frozen=True)
class Generation:
    """One line of the history: the parent after a generation, and what was spent by then."""

    generation: int
    token_forwards: int
    divergence: float


@dataclass
class State:
    """All that a search needs to go on after a generation."""

    parent: Levels
    divergence: float
    token_forwards: int
    history: list[Generation] = field(default_factory=list)
    finished: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> State:
        history = [Generation(**line) for line in data["history"]]
        return cls(**{**data, "parent": tuple(data["parent"]), "history": history})


def generation_cost(offspring: int, windows: int, length: int) -> int:
    """Token-forwards of a full generation."""
    stages = _stages(offspring, windows)
    return length * (sum(count * seen for count, seen in stages) + windows)


def evolve(
    grid: Grid,
    scorer: Scorer,
    settings: Settings,
    *,
    resumed: State | None = None,
    on_generation: Callable[[State], None] = lambda state: None,
) -> State:
    """Search from the centre, level 0 everywhere, for so many generations as the budget allows.

    `on_generation` is called after every generation with a state from which a later call may be
    `resumed`; the outcome is the same as that of an uninterrupted search.
    """

    def score(levels: Levels, windows: slice) -> float:
        divergence = scorer.divergence(levels, windows)
        return divergence if math.isfinite(divergence) else math.inf  # a NaN would never lose

    everything = slice(0, settings.windows)
    state = resumed
    if state is None:
        centre = (0,) * len(grid)
        spent = settings.windows * settings.length
        divergence = score(centre, everything)
        state = State(centre, divergence, spent, [Generation(0, spent, divergence)])
        on_generation(state)
    while not state.finished:
        number = state.history[-1].generation + 1
        # A generator of its own for every generation: nothing to carry over a resume.
        rng = np.random.default_rng([*settings.seed, number])
        pool = offspring_of(state.parent, grid, settings.offspring, rng)
        stages = _stages(settings.offspring, settings.windows)
        stages = [(min(count, len(pool)), seen) for count, seen in stages]
        cost = settings.length * (sum(count * seen for count, seen in stages) + settings.windows)
        state.finished = (
            not pool
            or number > settings.generations
            or state.token_forwards + cost > settings.token_forwards
        )
        if not state.finished:
            for stage, (count, seen) in enumerate(stages, start=1):
                first = int(rng.integers(settings.windows - seen + 1))
                pool = pool[:count] + ([state.parent] if stage == len(stages) else [])
                scores = {one: score(one, slice(first, first + seen)) for one in pool}
                pool = sorted(scores, key=scores.__getitem__)
            if scores[pool[0]] < state.divergence:
                state.parent, state.divergence = pool[0], scores[pool[0]]
            state.token_forwards += cost
            state.history.append(Generation(number, state.token_forwards, state.divergence))
        on_generation(state)
    return state


def offspring_of(parent: Levels, grid: Grid, count: int, rng: np.random.Generator) -> list[Levels]:
    """Up to so many distinct mutants."""
    found: dict[Levels, None] = {}
    for _ in range(count * _TRIES):
        child = mutate(parent, grid, rng)
        if child != parent:
            found[child] = None
        if len(found) == count:
            break
    return list(found)


def mutate(parent: Levels, grid: Grid, rng: np.random.Generator) -> Levels:
    """The smaller of two draws from 1 … 4 moves; fewer where no legal one is found.

    A move takes one sublayer a level down, so that it keeps more, and another of its type a level
    up. Both exist and are as far apart: a level that was cut off at the dense size or at nothing
    would change the total.
    """
    child = list(parent)
    layers = len(parent) // 2
    for _ in range(min(rng.integers(1, MOST_MOVES + 1), rng.integers(1, MOST_MOVES + 1))):
        for _ in range(_TRIES):
            a, b = rng.integers(layers, size=2) + layers * rng.integers(2)
            down, up = child[a] - 1, child[b] + 1
            if a == b or down not in grid[a] or up not in grid[b]:
                continue
            if grid[a][down] - grid[a][child[a]] == grid[b][child[b]] - grid[b][up]:
                child[a], child[b] = down, up
                break
    return tuple(child)


def _stages(offspring: int, windows: int) -> list[tuple[int, int]]:
    """(candidates, windows) of every stage of a generation; the last one's parent is not counted.

    Where the search's tokens are few, a stage takes one window at least.
    """
    return [
        (max(1, offspring // survivors), max(1, windows // tokens)) for survivors, tokens in STAGES
    ]
