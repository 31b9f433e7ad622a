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

import torch
from torch import Tensor

from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import (
    LayerSpec,
    Layout,
    attention_parameters,
    dense_layout,
    plain_selection,
    selection_from_plain,
)
from prunec.compiler.model.modeling.modeling_prunec import PerLayerDecoderLayer
from prunec.compiler.passes.eliminate import HeadPath, channel_order, head_path
from prunec.compiler.passes.gram import Streams, advance, energy, gram_statistics
from prunec.compiler.passes.least_squares import (
    NestedSolution,
    NormalEquations,
    normal_equations,
)
from prunec.compiler.passes.nested import CutLayer, NestedAttention, NestedLayer, NestedMLP, Shape
from prunec.compiler.passes.workers import ALONE, Workers


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
    workers: Workers = ALONE,
    on_layer: Callable[[int], None] = lambda done: None,
) -> None:
    """Walk through the model, pruning each layer to its spec in `layout`; `memory` gets the result.

    ids: [windows, length] calibration tokens. Every layer's path of attention shapes contains the
    layer's own; `waypoints` (descending) prescribe it further. `ranking` says in which order units
    go, by default at least cost. Of several workers each runs its share of the windows, and a layer
    is solved and saved by one of them. `on_layer` is told how many layers are done.
    """
    with_dense = solver.dense_target > 0
    streams = Streams.start(decoder, _share_of(decoder, ids, workers), with_dense=with_dense)
    walk = _Walk(decoder, streams, solver, ranking or LeastCost(solver.first_order), workers)
    for index, spec in enumerate(layout):
        tensors = decoder.layer_tensors(index)
        dense = decoder.layer(index, dense_layout(decoder.facts)[index], tensors)
        cut = walk.told(memory.load(index) if workers.leads else None, 0)
        if cut is None:
            path = waypoints or [(spec.query_heads, spec.kv_heads)]
            owner = workers.owner(index)
            nested = walk.solve(index, tensors, dense, spec, path, memory.with_nested)
            if nested is not None:
                cut = nested.cut(decoder.facts, tensors, spec)
                memory.save(index, nested, cut)
            del nested  # large, and the next layer's comes
            cut = walk.told(cut, owner)
            assert cut is not None
            pruned = decoder.layer(index, spec, cut.tensors)
        else:
            pruned = decoder.layer(index, spec, cut.tensors)
            if streams.dense is not None:
                advance(decoder, streams.dense, partial(decoder.attend, dense))
                advance(decoder, streams.dense, partial(decoder.feed, dense))
            advance(decoder, streams.pruned, partial(decoder.attend, pruned))
        advance(decoder, streams.pruned, partial(decoder.feed, pruned))
        on_layer(index + 1)


def _share_of(decoder: Decoder, ids: Tensor, workers: Workers) -> Tensor:
    """A worker's windows: whole batches of those that one worker would run, so that each window is
    run beside the same others whatever the number of workers."""
    batches = [*decoder.batches(*ids.shape)]
    mine = [batches[number] for number in workers.share_of(len(batches))]
    return ids[mine[0].start : mine[-1].stop] if mine else ids[:0]


@dataclass(frozen=True)
class _Walk:
    """What stays the same from layer to layer."""

    decoder: Decoder
    streams: Streams
    solver: Solver
    ranking: Ranking
    workers: Workers

    def told(self, cut: CutLayer | None, teller: int) -> CutLayer | None:
        """What one worker knows of a layer: None if it knows nothing."""
        if self.workers.size == 1:
            return cut
        plain = None if cut is None else plain_selection(cut.selection)
        tensors, said = self.workers.tell(cut.tensors if cut else {}, {"units": plain}, teller)
        if said["units"] is None:
            return None
        here = {name: tensor.to(self.decoder.device) for name, tensor in tensors.items()}
        return CutLayer(selection_from_plain(said["units"]), here)

    def solve(
        self,
        index: int,
        tensors: Mapping[str, Tensor],
        dense: PerLayerDecoderLayer,
        spec: LayerSpec,
        waypoints: Sequence[Shape],
        every_size: bool,
    ) -> NestedLayer | None:
        """Statistics, order and factorisation of a layer's two sublayers, for all sizes or for
        `spec`; None for a worker that is not the layer's owner.

        Leaves the dense stream behind the layer and the pruned one behind its attention, so that
        the MLP's statistics are those of inputs that the layer's own pruned attention has shaped.
        """
        decoder, owner = self.decoder, self.workers.owner(index)
        facts, family = decoder.facts, decoder.facts.family
        attend, feed = partial(decoder.attend, dense), partial(decoder.feed, dense)

        attention, cut, before = None, None, self._energy(owner)
        if problem := self._problem(tensors, dense, attend, family.output, owner):
            path = self.ranking.heads(index, problem, facts, waypoints)
            stay = path.order if every_size else path.order[: spec.query_heads * facts.head_dim]
            solution = NestedSolution.solve(problem, stay)
            attention = NestedAttention(facts.head_dim, path, solution, before)
            cut = attention.cut(facts, tensors, (spec.query_heads, spec.kv_heads))
        del problem
        cut = self.told(cut, owner)
        assert cut is not None
        pruned = decoder.layer(index, cut.selection.spec(facts.head_dim), cut.tensors)
        advance(decoder, self.streams.pruned, partial(decoder.attend, pruned))

        before = self._energy(owner)
        problem = self._problem(tensors, dense, feed, family.down, owner)
        if problem is None or attention is None:
            return None
        fewest = 0 if every_size else spec.ffn
        order = self.ranking.channels(index, problem, fewest)
        solution = NestedSolution.solve(problem, order if every_size else order[:fewest])
        return NestedLayer(attention, NestedMLP(solution, before))

    def _energy(self, owner: int) -> float:
        """Of the hidden states of all workers, for the owner."""
        total = torch.tensor([energy(self.streams.pruned)], dtype=torch.float64)
        self.workers.gather_sum(total, owner)
        return float(total)

    def _problem(
        self,
        tensors: Mapping[str, Tensor],
        dense: PerLayerDecoderLayer,
        sublayer: Callable[[Tensor], Tensor],
        name: str,
        owner: int,
    ) -> NormalEquations | None:
        """The local problem of a sublayer on the inputs of all workers, for the owner."""
        projection, placement = dense.get_submodule(name), self.decoder.placement
        statistics = gram_statistics(self.decoder, self.streams, sublayer, projection)
        for matrix in (statistics.own, statistics.missing):
            if matrix is not None:
                self.workers.gather_sum(matrix, owner)
        if self.workers.rank != owner:
            return None
        weight = tensors[f"{name}.weight"].T
        damping, dense_target = self.solver.damping, self.solver.dense_target
        problem = normal_equations(statistics, weight, damping=damping, dense_target=dense_target)
        if placement.matrices_in_file:
            assert placement.scratch is not None
            problem = problem.in_file(placement.scratch)
        return problem
