# SPDX-License-Identifier: Apache-2.0
"""What a layout may cost and what is legal; needs neither weights nor torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TypeVar

from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import (
    LayerSpec,
    Layout,
    attention_parameters,
    dense_layout,
    prunable_parameters,
)
from prunec.compiler.search.price import Price, prunable_price
from prunec.compiler.search.price import Shape as Shape

IsLegal = Callable[[int, int], bool]
Unit = TypeVar("Unit")

#: Thinner KV groups cost quality that fewer groups do not: they have to be this much nearer to the
#: share of attention that is asked for. Measured on pytiny at 37.5 %, benchmarks/RESULTS.md.
THINNED_GROUPS = 0.1


class InfeasibleTargetError(Exception):
    """No legal layout has the size that is asked for."""


@dataclass(frozen=True)
class Ceiling:
    """The most that a layout may cost in all, its price's constant included."""

    price: Price
    limit: float


@dataclass(frozen=True)
class Budget:
    """What a layout may cost, and in what units it can be cut.

    target: the share of the prunable parameters to remove, which is met as nearly as possible;
        or a ceiling, which is never exceeded
    tied: all layers alike
    attention_is_legal, mlp_is_legal: whether the exports can express a shape of (query heads,
        KV heads) or a width; no attention at all is (0, 0), no MLP is 0
    attended: layers that must have attention
    """

    facts: Facts
    target: float | Ceiling
    multiple_of: int
    tied: bool
    attention_is_legal: IsLegal
    mlp_is_legal: Callable[[int], bool] = lambda width: True
    attended: frozenset[int] = frozenset()

    def allows(self, layer: int, shape: Shape) -> bool:
        """Whether a layer's attention may have a shape."""
        return self.attention_is_legal(*shape) and (shape[1] > 0 or layer not in self.attended)

    @cached_property
    def price(self) -> Price:
        """What is counted."""
        return self.target.price if isinstance(self.target, Ceiling) else prunable_price(self.facts)

    @cached_property
    def limit(self) -> float:
        """What the sublayers may cost: as much, or for a ceiling at most as much."""
        if isinstance(self.target, Ceiling):
            return self.target.limit - self.price.constant
        prunable = prunable_parameters(self.facts, dense_layout(self.facts))
        return round((1 - self.target) * prunable)

    def attention_size(self, shape: Shape) -> float:
        """What one layer's attention costs at a shape."""
        return self.price.attention(shape)

    def mlp_size(self, width: int) -> float:
        """What one layer's MLP costs at a width."""
        return self.price.mlp(width)

    def size(self, candidate: Candidate) -> float:
        """What the sublayers of a candidate cost."""
        return sum(map(self.attention_size, candidate.shapes)) + sum(
            map(self.mlp_size, candidate.widths)
        )

    def fits(self, candidate: Candidate) -> bool:
        """Whether a candidate has the size asked for."""
        excess = self.size(candidate) - self.limit
        if isinstance(self.target, Ceiling):
            return excess <= 0
        return abs(excess) <= self.unit / 2

    @cached_property
    def mlp_is_free(self) -> bool:
        """Whether MLPs cost nothing, so that there is no reason to cut them."""
        return self.mlp_size(self.facts.ffn) == 0

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Legal MLP widths, ascending: multiples of `multiple_of`, and the dense width."""
        multiples = range(0, self.facts.ffn, self.multiple_of)
        legal = filter(self.mlp_is_legal, multiples[1 if self.tied else 0 :])
        return (*legal, self.facts.ffn)

    @cached_property
    def shapes(self) -> list[Shape]:
        """Legal attention shapes, those of most parameters first."""
        facts = self.facts
        per_group = facts.query_heads // facts.kv_heads
        shapes = [
            (kv * queries, kv)
            for kv in range(1, facts.kv_heads + 1)
            for queries in range(1, per_group + 1)
        ]
        legal = [shape for shape in [(0, 0), *shapes] if self.attention_is_legal(*shape)]

        def parameters(shape: Shape) -> tuple[int, Shape]:
            return attention_parameters(facts, LayerSpec(*shape, facts.head_dim, 0)), shape

        return sorted(legal, key=parameters, reverse=True)

    @cached_property
    def unit(self) -> float:
        """The cost of one step of the MLP width: how exactly a size can be met.

        Where there is no such step, that of one step between attention shapes.
        """
        sizes: list[float] = sorted({self.mlp_size(width) for width in self.widths})
        if len(sizes) == 1:
            sizes = sorted({self.attention_size(shape) for shape in self.shapes})
        # The last step may be shorter: up to a dense width that is no multiple.
        step = max((above - below for below, above in pairwise(sizes)), default=sizes[0])
        return step * (self.facts.layers if self.tied else 1)

    def uniform_layout(self) -> Layout:
        """Every layer alike, attention and MLP cut in about the same proportion.

        Untied, widths (or, where MLPs are dense, shapes) differ by one step between layers where
        that meets the size more exactly. Raises InfeasibleTargetError.
        """
        facts, layers = self.facts, self.facts.layers
        self._check_range()
        dense = self.attention_size((facts.query_heads, facts.kv_heads))
        share = self.limit / self.dense_size

        def unfitness(shape: Shape) -> tuple[bool, float]:
            queries, kv = shape
            if kv == 0:
                return True, 0.0  # no attention at all is the last resort
            distance = abs(self.attention_size(shape) / dense - share)
            whole = queries // kv == facts.query_heads // facts.kv_heads
            return False, distance + (0.0 if whole else THINNED_GROUPS)

        # Where one shape cannot leave the MLP a legal width, the next best may.
        tightest: tuple[float, Candidate] | None = None
        alike = [s for s in self.shapes if all(self.allows(i, s) for i in range(layers))]
        for shape in sorted(alike, key=unfitness):
            left = self.limit - layers * self.attention_size(shape)
            candidate = self._filled(Candidate((shape,) * layers, self._spread(left)))
            excess = self.size(candidate) - self.limit
            if isinstance(self.target, Ceiling) and excess > 0:
                continue
            if abs(excess) <= self.unit:
                return self.layout(candidate)
            if tightest is None or -excess < tightest[0]:
                tightest = -excess, candidate
        if isinstance(self.target, Ceiling) and tightest:
            return self.layout(tightest[1])
        raise InfeasibleTargetError(f"no layout with all layers alike {self._wish}")

    @cached_property
    def dense_size(self) -> float:
        """What the sublayers of the dense model cost."""
        facts = self.facts
        layer = self.attention_size((facts.query_heads, facts.kv_heads)) + self.mlp_size(facts.ffn)
        return facts.layers * layer

    @property
    def _wish(self) -> str:
        if isinstance(self.target, Ceiling):
            return f"has at most {_amount(self.target.limit)} {self.price.unit}"
        return f"removes {self.target:.4g} of what is prunable"

    def _check_range(self) -> None:
        """InfeasibleTargetError for a ceiling that no legal layout, or the dense one, is below."""
        if not isinstance(self.target, Ceiling):
            return
        constant = self.price.constant
        least_size = sum(
            min(self.attention_size(shape) for shape in self.shapes if self.allows(i, shape))
            + min(map(self.mlp_size, self.widths))
            for i in range(self.facts.layers)
        )
        low, high = constant + least_size, constant + self.dense_size
        if not low <= self.target.limit < high:
            least = f"{_amount(low)} (the dense model's over {high / low:.4g})" if low else "0"
            raise InfeasibleTargetError(
                f"{_amount(self.target.limit)} {self.price.unit} cannot be had: the dense model "
                f"has {_amount(high)}, and the least that is possible is {least}"
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

    def _spread(self, size: float) -> tuple[int, ...]:
        """Widths for all layers, as even as they can be, that come nearest to a total cost.

        For a ceiling they come nearest from below.
        """
        layers, widths = self.facts.layers, self.widths
        share = size / layers
        below = max((w for w in widths if self.mlp_size(w) <= share), default=widths[0])
        capped = isinstance(self.target, Ceiling)
        if self.tied:
            nearest = min(widths, key=lambda w: abs(self.mlp_size(w) - share))
            return (below if capped else nearest,) * layers
        above = widths[min(widths.index(below) + 1, len(widths) - 1)]
        step = self.mlp_size(above) - self.mlp_size(below)
        steps = (size - layers * self.mlp_size(below)) / step if step else 0
        return _evenly(below, above, int(steps) if capped else round(steps), layers)

    def _filled(self, candidate: Candidate) -> Candidate:
        """With the attention of some layers a step larger, where dense MLPs leave something."""
        facts, layers = self.facts, self.facts.layers
        if self.tied or not isinstance(self.target, Ceiling) or {*candidate.widths} != {facts.ffn}:
            return candidate
        shape = candidate.shapes[0]
        size = self.attention_size(shape)
        larger = [
            one
            for one in self.shapes
            if _within(shape, one)
            and self.attention_size(one) > size
            and one[0] // one[1] == facts.query_heads // facts.kv_heads
        ]
        if not larger:
            return candidate
        above = min(larger, key=self.attention_size)
        steps = (self.limit - self.size(candidate)) / (self.attention_size(above) - size)
        return Candidate(_evenly(shape, above, int(steps), layers), candidate.widths)

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
    if kv == 0 or outer_kv == 0:
        return kv == 0
    return kv <= outer_kv and queries // kv <= outer_queries // outer_kv


def _evenly(low: Unit, high: Unit, raised: int, layers: int) -> tuple[Unit, ...]:
    """`low` for all layers but `raised` of them, which lie evenly over the depth."""
    raised = min(max(raised, 0), layers)
    return tuple(
        high if (i + 1) * raised // layers > i * raised // layers else low for i in range(layers)
    )


def _amount(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
