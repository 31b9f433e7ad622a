# SPDX-License-Identifier: Apache-2.0
"""How large a layout has to be and what is legal; needs neither weights nor torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import (
    LayerSpec,
    Layout,
    attention_parameters,
    dense_layout,
    mlp_parameters,
    prunable_parameters,
)

Shape = tuple[int, int]  # query heads, KV heads
IsLegal = Callable[[int, int], bool]


#: Thinner KV groups cost quality that fewer groups do not: they have to be this much nearer to the
#: share of attention that is asked for. Measured on pytiny at 37.5 %, benchmarks/RESULTS.md.
THINNED_GROUPS = 0.1


class InfeasibleTargetError(Exception):
    """No legal layout has the size that is asked for."""


@dataclass(frozen=True)
class Budget:
    """How large a layout has to be, and in what units it can be cut.

    tied: all layers alike. attention_is_legal: whether the exports can express a shape of
    (query heads, KV heads); none at all is (0, 0).
    """

    facts: Facts
    sparsity: float
    multiple_of: int
    tied: bool
    attention_is_legal: IsLegal

    @cached_property
    def parameters(self) -> int:
        """Prunable parameters that the layout should have."""
        return round(
            (1 - self.sparsity) * prunable_parameters(self.facts, dense_layout(self.facts))
        )

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Legal MLP widths, ascending: multiples of `multiple_of`, and the dense width."""
        multiples = range(0, self.facts.ffn, self.multiple_of)
        return (*multiples[1 if self.tied else 0 :], self.facts.ffn)

    @cached_property
    def shapes(self) -> list[Shape]:
        """Legal attention shapes, largest first."""
        facts = self.facts
        per_group = facts.query_heads // facts.kv_heads
        shapes = [
            (kv * queries, kv)
            for kv in range(1, facts.kv_heads + 1)
            for queries in range(1, per_group + 1)
        ]
        legal = [shape for shape in [(0, 0), *shapes] if self.attention_is_legal(*shape)]
        return sorted(legal, key=lambda shape: (self.attention_size(shape), shape), reverse=True)

    def attention_size(self, shape: Shape) -> int:
        """Prunable parameters of one layer's attention at a shape."""
        return attention_parameters(self.facts, LayerSpec(*shape, self.facts.head_dim, 0))

    def mlp_size(self, width: int) -> int:
        """Prunable parameters of one layer's MLP at a width."""
        return mlp_parameters(self.facts, LayerSpec(0, 0, self.facts.head_dim, width))

    @cached_property
    def unit(self) -> int:
        """Prunable parameters in one step of the MLP width: how exactly a size can be met."""
        if len(self.widths) > 1:
            steps = [self.mlp_size(b) - self.mlp_size(a) for a, b in pairwise(self.widths)]
            step = max(steps)  # the last may be shorter: up to a dense width that is no multiple
        else:
            sizes = {self.attention_size(shape) for shape in self.shapes}
            step = min(sizes)
        return step * (self.facts.layers if self.tied else 1)

    def uniform_layout(self) -> Layout:
        """Every layer alike, attention and MLP cut in about the same proportion.

        Untied, widths differ by one step between layers where that meets the size more exactly.
        Raises InfeasibleTargetError.
        """
        facts, layers = self.facts, self.facts.layers
        dense = self.attention_size((facts.query_heads, facts.kv_heads))

        def unfitness(shape: Shape) -> tuple[bool, float]:
            queries, kv = shape
            if kv == 0:
                return True, 0.0  # no attention at all is the last resort
            distance = abs(self.attention_size(shape) / dense - (1 - self.sparsity))
            whole = queries // kv == facts.query_heads // facts.kv_heads
            return False, distance + (0.0 if whole else THINNED_GROUPS)

        # Where one shape cannot leave the MLP a legal width, the next best may.
        for shape in sorted(self.shapes, key=unfitness):
            left = self.parameters - layers * self.attention_size(shape)
            candidate = Candidate((shape,) * layers, self._spread(left))
            if abs(self.size(candidate) - self.parameters) <= self.unit:
                return self.layout(candidate)
        raise InfeasibleTargetError(
            f"no layout with all layers alike removes {self.sparsity:.4g} of what is prunable"
        )

    def tied_path(self, centre: Shape) -> list[Shape]:
        """Legal shapes that all layers pass through together, descending, `centre` among them."""
        path: list[Shape] = []
        for goal in (centre, (1, 1)):
            while not path or path[-1] != goal:
                queries, kv = path[-1] if path else (self.facts.query_heads, self.facts.kv_heads)
                below = [
                    shape
                    for shape in self.shapes
                    if shape[1] and _within(goal, shape) and _within(shape, (queries, kv))
                ]
                path.append(next(shape for shape in below if not path or shape != path[-1]))
        return path

    def _spread(self, parameters: int) -> tuple[int, ...]:
        """Widths for all layers, as even as they can be, that come nearest to a total size."""
        layers, widths = self.facts.layers, self.widths
        share = parameters / layers
        below = max((w for w in widths if self.mlp_size(w) <= share), default=widths[0])
        if self.tied:
            nearest = min(widths, key=lambda w: abs(self.mlp_size(w) - share))
            return (nearest,) * layers
        above = widths[min(widths.index(below) + 1, len(widths) - 1)]
        step = self.mlp_size(above) - self.mlp_size(below)
        raised = round((parameters - layers * self.mlp_size(below)) / step) if step else 0
        raised = min(max(raised, 0), layers)
        # Spread the wider layers evenly over the depth.
        return tuple(
            above if (i + 1) * raised // layers > i * raised // layers else below
            for i in range(layers)
        )

    def size(self, candidate: Candidate) -> int:
        """Prunable parameters of a candidate."""
        return sum(map(self.attention_size, candidate.shapes)) + sum(
            map(self.mlp_size, candidate.widths)
        )

    def layout(self, candidate: Candidate) -> Layout:
        head_dim = self.facts.head_dim
        return tuple(
            LayerSpec(queries, kv, head_dim, width)
            for (queries, kv), width in zip(candidate.shapes, candidate.widths, strict=True)
        )


@dataclass(frozen=True)
class Candidate:
    """A layout as the search sees it: one attention shape and one MLP width a layer."""

    shapes: tuple[Shape, ...]
    widths: tuple[int, ...]

    @classmethod
    def of(cls, layout: Layout) -> Candidate:
        return cls(
            tuple((spec.query_heads, spec.kv_heads) for spec in layout),
            tuple(spec.ffn for spec in layout),
        )


def _within(inner: Shape, outer: Shape) -> bool:
    """Whether a shape can be reached from another by legal removals."""
    (queries, kv), (outer_queries, outer_kv) = inner, outer
    return kv <= outer_kv and queries // kv <= outer_queries // outer_kv
