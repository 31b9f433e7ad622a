# SPDX-License-Identifier: Apache-2.0
"""Units that were chosen beforehand, as a walk's ranking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import LayerSelection
from prunec.compiler.model.surgery import head_rows
from prunec.compiler.passes.eliminate import HeadPath
from prunec.compiler.passes.least_squares import NormalEquations


@dataclass(frozen=True)
class Chosen:
    """Of every layer the units that stay come first. Each path goes from the dense shape to them,
    then to none."""

    selections: Sequence[LayerSelection]

    def heads(
        self,
        index: int,
        problem: NormalEquations,
        facts: Facts,
        waypoints: Sequence[tuple[int, int]],
    ) -> HeadPath:
        chosen = self.selections[index]
        every = (tuple(range(facts.query_heads)), tuple(range(facts.kv_heads)))
        states = [every, (chosen.query_heads, chosen.kv_heads), ((), ())]
        device = problem.target.device
        order = _first(chosen.query_heads, facts.query_heads, facts.head_dim).to(device)
        return HeadPath(tuple(dict.fromkeys(states)), order)

    def channels(self, index: int, problem: NormalEquations, fewest: int) -> Tensor:
        neurons = self.selections[index].neurons
        return _first(neurons, len(problem.target), 1).to(problem.target.device)


def _first(kept: tuple[int, ...], units: int, size: int) -> Tensor:
    """[units * size]: the rows of the units that stay, then those of the others."""
    stay = torch.zeros(units, dtype=torch.bool)
    stay[list(kept)] = True
    others = tuple((~stay).nonzero()[:, 0].tolist())
    return torch.cat([head_rows(kept, size), head_rows(others, size)])
