# SPDX-License-Identifier: Apache-2.0
"""The steps between layouts that a search may take: legal, and always of the asked-for size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from prunec.compiler.search.budget import Budget, Candidate, Ceiling, Shape


@dataclass(frozen=True)
class Space:
    """Candidates around a supernet: attention moves along each layer's path, widths in steps.

    paths: for every layer the attention shapes that its supernet can be cut to, largest first.
    """

    budget: Budget
    paths: tuple[tuple[Shape, ...], ...]

    @classmethod
    def within(cls, budget: Budget, reachable: Sequence[Sequence[Shape]]) -> Space:
        """Of the shapes that each layer's supernet can be cut to, those that the budget allows."""
        paths = (
            tuple(shape for shape in shapes if budget.allows(layer, shape))
            for layer, shapes in enumerate(reachable)
        )
        return cls(budget, tuple(paths))

    @property
    def groups(self) -> list[range]:
        """Layers that have to change together: each on its own, or all of them."""
        layers = len(self.paths)
        return [range(layers)] if self.budget.tied else [range(i, i + 1) for i in range(layers)]

    def reachable(
        self, candidate: Candidate, step: int, rng: np.random.Generator
    ) -> Candidate | None:
        """The candidate with every attention shape that its layer's path lacks replaced by the
        path's nearest in cost, and the widths made to fit; None where they cannot be."""
        size = self.budget.attention_size
        shapes = tuple(
            shape if shape in path else min(path, key=lambda s: abs(size(s) - size(shape)))
            for shape, path in zip(candidate.shapes, self.paths, strict=True)
        )
        if shapes == candidate.shapes:
            return candidate
        everywhere = range(len(shapes))
        moved = replace(candidate, shapes=shapes)
        if not self.budget.mlp_is_free:
            excess = round(self._excess_neurons(moved, everywhere))
            moved = self.moved_mlp(moved, everywhere, -excess)
        return self.balanced(moved, step, rng)

    def mutate(
        self, parent: Candidate, step: int, rng: np.random.Generator, most: int
    ) -> Candidate | None:
        """Move capacity between sublayers; None if the result misses the size.

        Up to `most` transfers: one sublayer loses a level and another, of either kind, gains one.
        An attention level is one shape along the path, an MLP level `step` neurons. MLP widths
        then absorb what is left over, so that every candidate has the size asked for. Where MLPs
        cost nothing they stay as they are, and attention absorbs it.
        """
        # Sites: 0 … n-1 attention of a layer, n … 2n-1 its MLP; tied layers move as one.
        groups = self.groups
        sites = len(groups) * (1 if self.budget.mlp_is_free else 2)
        if sites < 2:
            return None
        child = parent
        for _ in range(min(rng.integers(1, most + 1), rng.integers(1, most + 1))):
            donor, receiver = rng.choice(sites, size=2, replace=False)
            for site, direction in ((donor, -1), (receiver, +1)):
                layer_group = groups[site % len(groups)]
                if site < len(groups):
                    child = self.moved_attention(child, layer_group, direction)
                else:
                    child = self.moved_mlp(child, layer_group, direction * step)
        return self.balanced(child, step, rng)

    def balanced(
        self, candidate: Candidate, step: int, rng: np.random.Generator
    ) -> Candidate | None:
        """The candidate with some layers moved, a step each at most, until it has the size asked
        for; None where that is not enough."""
        if isinstance(self.budget.target, Ceiling):
            return self._fill(candidate, self.groups, step, rng)
        return self._balance(candidate, self.groups, step, rng)

    def moved_attention(self, candidate: Candidate, layers: range, direction: int) -> Candidate:
        """Some layers one shape further along their paths, towards the dense one if positive."""
        shapes = list(candidate.shapes)
        for layer in layers:
            path = self.paths[layer]
            at = path.index(shapes[layer]) - direction
            shapes[layer] = path[min(max(at, 0), len(path) - 1)]
        return replace(candidate, shapes=tuple(shapes))

    def moved_mlp(self, candidate: Candidate, layers: range, neurons: int) -> Candidate:
        """Some layers wider by so many neurons, at the nearest legal width."""
        legal, widths = self.budget.widths, list(candidate.widths)
        for layer in layers:
            wanted = widths[layer] + neurons
            widths[layer] = min(legal, key=lambda width: (abs(width - wanted), width))
        return replace(candidate, widths=tuple(widths))

    def _balance(
        self, candidate: Candidate, groups: Sequence[range], step: int, rng: np.random.Generator
    ) -> Candidate | None:
        """Widths of some layers moved towards the size that is asked for."""
        budget = self.budget
        for group in rng.permutation(len(groups)):
            if budget.fits(candidate):
                return candidate
            neurons = round(self._excess_neurons(candidate, groups[group]))
            # Not more than a step at one layer, so that the rest is shared out.
            neurons = min(max(neurons, -step), step) if not budget.tied else neurons
            candidate = self.moved_mlp(candidate, groups[group], -neurons)
        return candidate if budget.fits(candidate) else None

    def _fill(
        self, candidate: Candidate, groups: Sequence[range], step: int, rng: np.random.Generator
    ) -> Candidate | None:
        """Sublayers cut until the candidate is under the ceiling, then grown while it stays so."""
        budget = self.budget
        order = [groups[group] for group in rng.permutation(len(groups))]
        for layers in order:
            if budget.fits(candidate):
                break
            candidate = self._absorb(candidate, layers, step)
        if not budget.fits(candidate):
            return None
        if not budget.mlp_is_free:
            for layers in order:
                grown = self._absorb(candidate, layers, step)
                candidate = grown if budget.fits(grown) else candidate
        if budget.mlp_is_free or min(candidate.widths) == budget.facts.ffn:
            for layers in order:
                grown = self.moved_attention(candidate, layers, +1)
                candidate = grown if budget.fits(grown) else candidate
        return candidate

    def _absorb(self, candidate: Candidate, layers: range, step: int) -> Candidate:
        """Some layers cut or grown by what is over or left, by a step at most."""
        budget = self.budget
        if budget.mlp_is_free:
            return self.moved_attention(candidate, layers, -1)
        neurons = math.ceil(self._excess_neurons(candidate, layers))
        neurons = min(max(neurons, -step), step) if not budget.tied else neurons
        widths = list(candidate.widths)
        for layer in layers:
            wanted = widths[layer] - neurons
            # Rounded down: a ceiling is never exceeded.
            widths[layer] = max((w for w in budget.widths if w <= wanted), default=budget.widths[0])
        return replace(candidate, widths=tuple(widths))

    def _excess_neurons(self, candidate: Candidate, layers: range) -> float:
        """Neurons a layer by which the widths of some layers miss the size, below zero if under."""
        budget = self.budget
        per_neuron = budget.mlp_size(budget.facts.ffn) / budget.facts.ffn
        excess = budget.size(candidate) - budget.limit
        return excess / (per_neuron * len(layers))
