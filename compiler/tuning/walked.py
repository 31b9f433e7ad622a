# SPDX-License-Identifier: Apache-2.0
"""A model pruned by a trial's settings as the build will prune it: layer by layer, each fitted to
what the layers before it have left.

It takes a walk along calibration text for every trial, and tells apart what trials of single layers
cannot: the walk mends much of what those show as differences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prunec.compiler.estimates_walk import walk_forwards
from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.layout import LayerSelection, LayerSpec, Layout
from prunec.compiler.passes.importance.ranking import Chosen
from prunec.compiler.passes.importance.scoring import score_layer
from prunec.compiler.passes.importance.selection import select_units
from prunec.compiler.passes.nested import CutLayer, NestedLayer
from prunec.compiler.passes.sequential import LeastCost, Ranking, Solver, prune_sequentially
from prunec.compiler.tuning.one_shot import OneShot, scoring_of
from prunec.compiler.tuning.settings import Settings


@dataclass(frozen=True)
class Walked:
    """Walks along the text that a trial chooses.

    shot: what layouts and scores are taken from; tokens, seed: of the text, as the build draws it
    dense_target: as of the method
    """

    shot: OneShot
    tokens: int
    seed: int
    dense_target: float

    def layout(self, settings: Settings) -> Layout:
        """What every layer keeps. ModelError where there is no such layout."""
        return self.shot.layout(settings)

    def prune(
        self,
        decoder: Decoder,
        settings: Settings,
        layout: Layout,
        save: Callable[[int, CutLayer], None],
    ) -> int:
        """All layers, given to `save` one by one. Returns token-forwards."""
        ids, _ = self.shot.pools.text(settings.calibration, self.tokens, self.seed)
        ranking: Ranking = LeastCost(settings.first_order)
        if settings.metrics:
            specs = enumerate(layout)
            ranking = Chosen([self._chosen(decoder, settings, *spec) for spec in specs])
        solver = Solver(settings.damping, self.dense_target, settings.first_order)
        prune_sequentially(decoder, ids, layout, solver, _Anew(save), ranking=ranking)
        return walk_forwards(self.dense_target) * ids.numel()

    def _chosen(
        self, decoder: Decoder, settings: Settings, index: int, spec: LayerSpec
    ) -> LayerSelection:
        facts, tensors = decoder.facts, decoder.layer_tensors(index)
        statistics = self.shot.pools.mixed(settings.calibration, index)
        scores = score_layer(facts, tensors, statistics, scoring_of(settings))
        return select_units(facts, scores, spec)


@dataclass(frozen=True)
class _Anew:
    """A walk's memory that knows nothing of earlier walks."""

    keep: Callable[[int, CutLayer], None]
    with_nested: bool = False

    def load(self, index: int) -> CutLayer | None:
        return None

    def save(self, index: int, nested: NestedLayer, cut: CutLayer) -> None:
        self.keep(index, cut)
