# SPDX-License-Identifier: Apache-2.0
"""Prune a model along one path: layer by layer, each fitted to the inputs it will really see.

The same walk builds a supernet (every size of every layer, around a centre layout) and resolves
the final layout; they differ in what is kept of each layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from torch import Tensor

from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import LayerSpec, Layout, attention_parameters, dense_layout
from prunec.compiler.model.modeling.modeling_prunec import PerLayerDecoderLayer
from prunec.compiler.passes.eliminate import HeadPath, channel_order, head_path
from prunec.compiler.passes.gram import Streams, advance, energy, gram_statistics
from prunec.compiler.passes.least_squares import (
    NestedSolution,
    NormalEquations,
    normal_equations,
)
from prunec.compiler.passes.nested import CutLayer, NestedAttention, NestedLayer, NestedMLP, Shape


@dataclass(frozen=True)
class Solver:
    """How local problems are posed, see `normal_equations`, and what removing a unit costs, see
    `channel_order`."""

    damping: float
    dense_target: float
    first_order: float = 0.0


class Ranking(Protocol):
    """Which units of a layer matter most, before any is removed."""

    def heads(
        self, index: int, problem: NormalEquations, facts: Facts, waypoints: Sequence[Shape]
    ) -> HeadPath:
        """The attention shapes of a layer from dense to none, those of `waypoints` among them."""
        ...

    def channels(self, index: int, problem: NormalEquations, fewest: int) -> Tensor:
        """[MLP width]: neurons of a layer, most important first; the first `fewest` in any order,
        since all of them stay."""
        ...


@dataclass(frozen=True)
class LeastCost:
    """One unit after another goes, each time the one whose removal costs least by then."""

    first_order: float

    def heads(
        self, index: int, problem: NormalEquations, facts: Facts, waypoints: Sequence[Shape]
    ) -> HeadPath:
        return head_path(
            problem,
            head_dim=facts.head_dim,
            query_heads=facts.query_heads,
            kv_heads=facts.kv_heads,
            parameters=lambda q, kv: attention_parameters(
                facts, LayerSpec(q, kv, facts.head_dim, 0)
            ),
            waypoints=waypoints,
            first_order=self.first_order,
        )

    def channels(self, index: int, problem: NormalEquations, fewest: int) -> Tensor:
        return channel_order(problem, first_order=self.first_order, fewest=fewest)


class LayerMemory(Protocol):
    """Where finished layers are kept, so that a walk that was stopped goes on.

    with_nested: whether every size of a layer is wanted; else it is solved for the layout's only
    """

    @property
    def with_nested(self) -> bool: ...

    def load(self, index: int) -> CutLayer | None: ...

    def save(self, index: int, nested: NestedLayer, cut: CutLayer) -> None: ...


def prune_sequentially(
    decoder: Decoder,
    ids: Tensor,
    layout: Layout,
    solver: Solver,
    memory: LayerMemory,
    *,
    ranking: Ranking | None = None,
    waypoints: Sequence[Shape] = (),
    on_layer: Callable[[int], None] = lambda done: None,
) -> None:
    """Walk through the model, pruning each layer to its spec in `layout`; `memory` gets the result.

    ids: [windows, length] calibration tokens. Every layer's path of attention shapes contains the
    layer's own; `waypoints` (descending) prescribe it further. `ranking` says in which order units
    go, by default at least cost. `on_layer` is told how many layers are done.
    """
    ranking = ranking or LeastCost(solver.first_order)
    streams = Streams.start(decoder, ids, with_dense=solver.dense_target > 0)
    for index, spec in enumerate(layout):
        tensors = decoder.layer_tensors(index)
        dense = decoder.layer(index, dense_layout(decoder.facts)[index], tensors)
        cut = memory.load(index)
        if cut is None:
            path = waypoints or [(spec.query_heads, spec.kv_heads)]
            nested = _solve_layer(
                decoder,
                index,
                tensors,
                dense,
                streams,
                spec,
                solver,
                ranking,
                path,
                every_size=memory.with_nested,
            )
            cut = nested.cut(decoder.facts, tensors, spec)
            memory.save(index, nested, cut)
            pruned = decoder.layer(index, spec, cut.tensors)
        else:
            pruned = decoder.layer(index, spec, cut.tensors)
            if streams.dense is not None:
                advance(decoder, streams.dense, partial(decoder.attend, dense))
                advance(decoder, streams.dense, partial(decoder.feed, dense))
            advance(decoder, streams.pruned, partial(decoder.attend, pruned))
        advance(decoder, streams.pruned, partial(decoder.feed, pruned))
        on_layer(index + 1)


def _solve_layer(
    decoder: Decoder,
    index: int,
    tensors: Mapping[str, Tensor],
    dense: PerLayerDecoderLayer,
    streams: Streams,
    spec: LayerSpec,
    solver: Solver,
    ranking: Ranking,
    waypoints: Sequence[Shape],
    *,
    every_size: bool,
) -> NestedLayer:
    """Statistics, order and factorisation of a layer's two sublayers, for all sizes or for `spec`.

    Leaves the dense stream behind the layer and the pruned one behind its attention, so that the
    MLP's statistics are those of inputs that the layer's own pruned attention has shaped.
    """
    facts, family = decoder.facts, decoder.facts.family

    def local_problem(sublayer: Callable[[Tensor], Tensor], name: str) -> NormalEquations:
        statistics = gram_statistics(decoder, streams, sublayer, dense.get_submodule(name))
        weight = tensors[f"{name}.weight"].T
        problem = normal_equations(
            statistics, weight, damping=solver.damping, dense_target=solver.dense_target
        )
        if decoder.placement.matrices_in_file:
            assert decoder.placement.scratch is not None
            problem = problem.in_file(decoder.placement.scratch)
        return problem

    problem = local_problem(partial(decoder.attend, dense), family.output)
    path = ranking.heads(index, problem, facts, waypoints)
    stay = path.order if every_size else path.order[: spec.query_heads * facts.head_dim]
    solution = NestedSolution.solve(problem, stay)
    attention = NestedAttention(facts.head_dim, path, solution, energy(streams.pruned))
    cut = attention.cut(facts, tensors, (spec.query_heads, spec.kv_heads))
    pruned = decoder.layer(index, cut.selection.spec(facts.head_dim), cut.tensors)
    advance(decoder, streams.pruned, partial(decoder.attend, pruned))

    problem = local_problem(partial(decoder.feed, dense), family.down)
    fewest = 0 if every_size else spec.ffn
    order = ranking.channels(index, problem, fewest)
    solution = NestedSolution.solve(problem, order if every_size else order[:fewest])
    return NestedLayer(attention, NestedMLP(solution, energy(streams.pruned)))
