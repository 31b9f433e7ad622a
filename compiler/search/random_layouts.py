# SPDX-License-Identifier: Apache-2.0
"""The floor of all searches: layouts drawn at random, each far from the last."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prunec.compiler.search.budget import Candidate, Shape
from prunec.compiler.search.searcher import Proposal, Settings, State, affordable_offspring
from prunec.compiler.search.space import Space

_TRIES = 50  # draws per wanted layout: most have to be balanced, and some cannot be


@dataclass(frozen=True)
class RandomLayouts:
    """Every layer's attention shape and width uniformly from what is legal, then balanced."""

    space: Space

    def propose(
        self, state: State, settings: Settings, most: int, rng: np.random.Generator
    ) -> Proposal:
        count = affordable_offspring(settings, most)
        pool: dict[Candidate, None] = {}
        for _ in range(_TRIES * count):
            drawn = self._draw(rng)
            # As wide a step as there is: what is drawn may be far from the size asked for.
            fitting = self.space.balanced(drawn, self.space.budget.facts.ffn, rng)
            if fitting is not None and hash(fitting) not in state.tried:
                pool[fitting] = None
            if len(pool) == count:
                break
        return Proposal(list(pool))

    def _draw(self, rng: np.random.Generator) -> Candidate:
        space = self.space
        shapes: list[Shape] = []
        widths: list[int] = []
        for group in space.groups:  # in the order of the layers
            path, legal = space.paths[group[0]], space.budget.widths
            shapes += [path[rng.integers(len(path))]] * len(group)
            widths += [legal[rng.integers(len(legal))]] * len(group)
        return Candidate(tuple(shapes), tuple(widths))
