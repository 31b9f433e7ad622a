# SPDX-License-Identifier: Apache-2.0
"""The steps between layouts that a search may take: legal, and always of the asked-for size."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from prunec.compiler.search.budget import Budget, Candidate, Shape


@dataclass(frozen=True)
class Space:
    """Candidates around a supernet: attention moves along each layer's path, widths in steps.

    paths: for every layer the attention shapes that its supernet can be cut to, largest first.
    """

    budget: Budget
    paths: tuple[tuple[Shape, ...], ...]

    @property
    def groups(self) -> list[range]:
        """Layers that have to change together: each on its own, or all of them."""
        layers = len(self.paths)
        return [range(layers)] if self.budget.tied else [range(i, i + 1) for i in range(layers)]

    def mutate(
        self, parent: Candidate, step: int, rng: np.random.Generator, most: int
    ) -> Candidate | None:
        """Move capacity between sublayers; None if the result misses the size.

        Up to `most` transfers: one sublayer loses a level and another, of either kind, gains one.
        An attention level is one shape along the path, an MLP level `step` neurons. MLP widths
        then absorb what is left over, so that every candidate has the size asked for.
        """
        # Sites: 0 … n-1 attention of a layer, n … 2n-1 its MLP; tied layers move as one.
        groups = self.groups
        child = parent
        for _ in range(min(rng.integers(1, most + 1), rng.integers(1, most + 1))):
            donor, receiver = rng.choice(2 * len(groups), size=2, replace=False)
            for site, direction in ((donor, -1), (receiver, +1)):
                layer_group = groups[site % len(groups)]
                if site < len(groups):
                    child = self._move_attention(child, layer_group, direction)
                else:
                    child = self._move_mlp(child, layer_group, direction * step)
        return self.balanced(child, step, rng)

    def _move_attention(self, candidate: Candidate, layers: range, direction: int) -> Candidate:
        shapes = list(candidate.shapes)
        for layer in layers:
            path = self.paths[layer]
            at = path.index(shapes[layer]) - direction
            shapes[layer] = path[min(max(at, 0), len(path) - 1)]
        return replace(candidate, shapes=tuple(shapes))

    def _move_mlp(self, candidate: Candidate, layers: range, neurons: int) -> Candidate:
        legal, widths = self.budget.widths, list(candidate.widths)
        for layer in layers:
            wanted = widths[layer] + neurons
            widths[layer] = min(legal, key=lambda width: (abs(width - wanted), width))
        return replace(candidate, widths=tuple(widths))

    def balanced(
        self, candidate: Candidate, step: int, rng: np.random.Generator
    ) -> Candidate | None:
        """The candidate with MLP widths moved, a step a layer at most, until it has the size asked
        for; None if they cannot absorb what is missing."""
        budget, groups = self.budget, self.groups
        per_neuron = budget.mlp_size(budget.facts.ffn) / budget.facts.ffn
        for group in rng.permutation(len(groups)):
            excess = budget.size(candidate) - budget.parameters
            if abs(excess) <= budget.unit / 2:
                return candidate
            layers = groups[group]
            neurons = round(excess / (per_neuron * len(layers)))
            # Not more than a step at one layer, so that the rest is shared out.
            neurons = min(max(neurons, -step), step) if not budget.tied else neurons
            candidate = self._move_mlp(candidate, layers, -neurons)
        excess = budget.size(candidate) - budget.parameters
        return candidate if abs(excess) <= budget.unit / 2 else None
