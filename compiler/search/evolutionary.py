# SPDX-License-Identifier: Apache-2.0
"""Evolutionary search over layouts, as in Týr-the-Pruner and EvoPress: mutants of the best so far.

Source: arXiv 2503.09657 §3.3; transfers between attention and MLP ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prunec.compiler.search.budget import Candidate
from prunec.compiler.search.searcher import Proposal, Settings, State, affordable_offspring
from prunec.compiler.search.space import Space

MOST_TRANSFERS = 4
_FRUITLESS = 50  # mutations in a row that bring nothing new before fewer offspring have to do


@dataclass(frozen=True)
class Evolutionary:
    space: Space

    def propose(
        self, state: State, settings: Settings, most: int, rng: np.random.Generator
    ) -> Proposal:
        count = affordable_offspring(settings, most)
        return Proposal(mutants(self.space, state, settings.step, count, rng))


def mutants(
    space: Space, state: State, step: int, count: int, rng: np.random.Generator
) -> list[Candidate]:
    """Distinct children of the parent that were not tried before; fewer where there are few."""
    pool: dict[Candidate, None] = {}
    fruitless = 0
    while len(pool) < count and fruitless < _FRUITLESS:
        child = space.mutate(state.parent, step, rng, MOST_TRANSFERS)
        fruitless += 1
        if child is not None and child not in pool and hash(child) not in state.tried:
            pool[child] = None
            fruitless = 0
    return list(pool)
