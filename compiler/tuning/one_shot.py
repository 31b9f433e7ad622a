# SPDX-License-Identifier: Apache-2.0
"""A model pruned by a trial's settings: every layer by itself, from the dense model's statistics.

No layer waits for another, which is what makes trials cheap; the build's last steps walk through
the model with the settings that were found best.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import LayerSpec, Layout
from prunec.compiler.passes.importance.influence import Influence
from prunec.compiler.passes.importance.prune import prune_layer
from prunec.compiler.passes.importance.scoring import Scoring
from prunec.compiler.passes.importance.shares import layer_shares
from prunec.compiler.passes.importance.statistics import LayerStatistics, SublayerStatistics
from prunec.compiler.passes.least_squares import (
    GramStatistics,
    NestedSolution,
    NormalEquations,
    normal_equations,
)
from prunec.compiler.passes.nested import CutLayer, NestedAttention, NestedLayer, NestedMLP
from prunec.compiler.passes.sequential import LeastCost
from prunec.compiler.search.allocation import allocate
from prunec.compiler.search.budget import Budget, InfeasibleTargetError
from prunec.compiler.tuning.pools import Pools
from prunec.compiler.tuning.settings import Settings


@dataclass(frozen=True)
class OneShot:
    """Prunes layers by settings.

    start: the layout where a trial allocates nothing; refit: as of method `importance`
    """

    facts: Facts
    budget: Budget
    start: Layout
    pools: Pools
    refit: bool

    def layout(self, settings: Settings) -> Layout:
        """What every layer keeps. ModelError where there is no such layout."""
        if settings.all_alike:
            return self.start
        turns = None
        if settings.allocation != "uniform":
            turns = self.pools.turns(settings.calibration, cast(Influence, settings.allocation))
        shares = layer_shares(
            self.facts.layers,
            turns,
            spread=settings.spread,
            slope=settings.slope,
            bend=settings.bend,
        )
        try:
            return allocate(self.budget, shares, settings.attention)
        except InfeasibleTargetError as error:
            raise ModelError(str(error)) from error

    def layer(
        self, index: int, tensors: Mapping[str, Tensor], spec: LayerSpec, settings: Settings
    ) -> CutLayer:
        """A layer at a spec; `tensors` are those of the dense layer, names relative to it."""
        statistics = self.pools.mixed(settings.calibration, index)
        if not settings.metrics:
            return solved(self.facts, index, tensors, statistics, spec, settings)
        scoring = Scoring(
            settings.metrics,
            settings.aggregation,
            settings.exponent,
            settings.damping,
            settings.by_part,
        )
        return prune_layer(
            self.facts,
            tensors,
            statistics,
            scoring,
            spec,
            refit=self.refit,
            damping=settings.damping,
        )


def solved(
    facts: Facts,
    index: int,
    tensors: Mapping[str, Tensor],
    statistics: LayerStatistics,
    spec: LayerSpec,
    settings: Settings,
) -> CutLayer:
    """A layer as `uniform` and `tyr` solve it, were all layers before it dense."""
    family, ranking = facts.family, LeastCost(settings.first_order)

    def problem(sublayer: SublayerStatistics, last: str) -> NormalEquations:
        assert sublayer.gram is not None  # collected for these methods
        weight = tensors[f"{last}.weight"].T
        gram = GramStatistics(sublayer.gram.double(), None)
        return normal_equations(gram, weight, damping=settings.damping, dense_target=0.0)

    attention = problem(statistics.attention, family.output)
    path = ranking.heads(index, attention, facts, [(spec.query_heads, spec.kv_heads)])
    mlp = problem(statistics.mlp, family.down)
    nested = NestedLayer(
        NestedAttention(facts.head_dim, path, NestedSolution.solve(attention, path.order), 0.0),
        NestedMLP(NestedSolution.solve(mlp, ranking.channels(index, mlp, 0)), 0.0),
    )
    return nested.cut(facts, tensors, spec)
