# SPDX-License-Identifier: Apache-2.0
"""A legal layout of the size asked for whose layers keep given shares, relative to each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prunec.compiler.model.layout import Layout
from prunec.compiler.search.budget import (
    THINNED_GROUPS,
    Budget,
    Candidate,
    Ceiling,
    InfeasibleTargetError,
    Shape,
)

#: Halvings of the interval that the common factor is sought in.
_HALVINGS = 40


def allocate(budget: Budget, shares: Sequence[float], attention: float = 1.0) -> Layout:
    """Layer l keeps about `shares[l]` times a factor common to all, at most everything.

    Attention gets the legal shape nearest to `attention` times the layer's share, the MLP what that
    leaves, so that layers keep their shares although attention comes in coarse pieces. A share of
    `math.inf` keeps a layer whole. The factor is the one that meets the budget; steps of single
    layers, those first that are furthest from their share, then meet it exactly. Equal shares of
    which attention gets its own give the budget's uniform layout. Raises InfeasibleTargetError.
    """
    if len({*shares}) == 1 and attention == 1:
        return budget.uniform_layout()
    if budget.tied:
        raise InfeasibleTargetError("layers that all have to be alike cannot keep different shares")
    allocation = _Allocation(budget, tuple(shares), attention)
    given = [share for share in shares if 0 < share < math.inf]
    low, high = 0.0, 2 / min(given, default=1.0)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if budget.size(allocation.at(middle)) > budget.limit:
            high = middle
        else:
            low = middle
    for factor in (low, high):
        met = allocation.met(factor)
        if met is not None:
            return budget.layout(met)
    raise InfeasibleTargetError(
        "no layout whose layers keep the shares asked for has the size asked for"
    )


@dataclass(frozen=True)
class _Allocation:
    budget: Budget
    shares: tuple[float, ...]
    attention: float

    def wanted(self, factor: float) -> list[float]:
        """What every layer is to cost."""
        whole = self.budget.dense_size / len(self.shares)
        return [whole * min(1.0, share * factor if factor else 0.0) for share in self.shares]

    def at(self, factor: float) -> Candidate:
        """Legal sublayers nearest to what every layer is to cost."""
        shapes, widths = [], []
        for layer, cost in enumerate(self.wanted(factor)):
            shape = self._shape(layer, cost)
            left = cost - self.budget.attention_size(shape)
            shapes.append(shape)
            widths.append(min(self.budget.widths, key=lambda w: self._missed(w, left)))
        return Candidate(tuple(shapes), tuple(widths))

    def met(self, factor: float) -> Candidate | None:
        """The layers for a factor, moved by a step here and there until the size is met."""
        budget, candidate = self.budget, self.at(factor)
        wanted = self.wanted(factor)
        steps = len(self.shares) * (len(budget.widths) + len(budget.shapes))
        while not budget.fits(candidate) and steps:
            moved = self._moved(candidate, wanted, grow=budget.size(candidate) < budget.limit)
            if moved is None:
                return None
            candidate, steps = moved, steps - 1
        if not budget.fits(candidate):
            return None
        while isinstance(budget.target, Ceiling):
            moved = self._moved(candidate, wanted, grow=True)
            if moved is None:
                break
            candidate = moved
        return candidate

    def _shape(self, layer: int, cost: float) -> Shape:
        """As `Budget.uniform_layout` chooses: no attention at all is the last resort, unless
        nothing is wanted of the layer."""
        budget, facts = self.budget, self.budget.facts
        dense = budget.attention_size((facts.query_heads, facts.kv_heads))
        share = cost * len(self.shares) / budget.dense_size
        share *= 1.0 if math.isinf(self.shares[layer]) else self.attention
        legal = [shape for shape in budget.shapes if budget.allows(layer, shape)]

        def unfitness(shape: Shape) -> tuple[bool, float]:
            queries, kv = shape
            if kv == 0:
                return cost > 0, 0.0
            whole = queries // kv == facts.query_heads // facts.kv_heads
            distance = abs(budget.attention_size(shape) / dense - share) if dense else 0.0
            return False, distance + (0.0 if whole else THINNED_GROUPS)

        return min(legal, key=unfitness)

    def _missed(self, width: int, left: float) -> tuple[float, int]:
        if self.budget.mlp_is_free:
            return 0.0, -width
        return abs(self.budget.mlp_size(width) - left), width

    def _moved(
        self, candidate: Candidate, wanted: Sequence[float], *, grow: bool
    ) -> Candidate | None:
        """With one layer a step larger or smaller, of those that may: the one that is furthest
        from what it is to cost. For a ceiling, never grown over it. None where none can move."""
        budget, sign = self.budget, 1 if grow else -1
        found: list[tuple[float, int, Candidate]] = []
        for layer, share in enumerate(self.shares):
            if math.isinf(share):
                continue
            step = self._step(candidate, layer, sign)
            if step is None or (
                grow and isinstance(budget.target, Ceiling) and not budget.fits(step)
            ):
                continue
            cost = budget.attention_size(candidate.shapes[layer])
            cost += budget.mlp_size(candidate.widths[layer])
            found.append((sign * (cost - wanted[layer]), layer, step))
        return min(found)[2] if found else None

    def _step(self, candidate: Candidate, layer: int, sign: int) -> Candidate | None:
        """The candidate with a layer's MLP a step larger or smaller; its attention where the MLP
        costs nothing or is at its end."""
        budget, facts = self.budget, self.budget.facts
        shapes, widths = list(candidate.shapes), list(candidate.widths)
        if not budget.mlp_is_free:
            at = budget.widths.index(widths[layer]) + sign
            if 0 <= at < len(budget.widths):
                widths[layer] = budget.widths[at]
                return Candidate(tuple(shapes), tuple(widths))
        size: Callable[[Shape], float] = budget.attention_size
        present = size(shapes[layer])
        whole = facts.query_heads // facts.kv_heads
        further = [
            shape
            for shape in budget.shapes
            if budget.allows(layer, shape)
            and shape[1] > 0
            and sign * (size(shape) - present) > 0
            and shape[0] // shape[1] == whole
        ]
        if not further:
            return None
        shapes[layer] = min(further, key=lambda shape: abs(size(shape) - present))
        return Candidate(tuple(shapes), tuple(widths))
