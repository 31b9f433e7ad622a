# SPDX-License-Identifier: Apache-2.0
"""Scores of all units of a layer: metrics over the parts of each unit, normalised and mixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.facts import Facts
from prunec.compiler.passes.importance.metrics import METRICS
from prunec.compiler.passes.importance.statistics import LayerStatistics, Part
from prunec.compiler.passes.importance.sublayer import Sublayer, sublayers

#: What goes with a query head, with a KV group, with a neuron; the last projection's part last.
HEAD: Sequence[Part] = ("query", "output")
GROUP: Sequence[Part] = ("query", "key", "value", "output")
NEURON: Sequence[Part] = ("gate", "up", "down")


@dataclass(frozen=True)
class Scoring:
    """How units are scored.

    metrics: weights of metrics by their names; those of weight 0 are left out
    aggregation: what becomes of the scores of a unit's parts: sum, product, max, mean, or last
        (that of the output or down projection alone). Parts that a metric says nothing of do not
        count.
    exponent: power that a metric's scores, over their mean, are raised to before they are mixed
    by_part: metrics are mixed within each part, and what comes of it is aggregated (as AdaPruner is
        published); otherwise each metric is aggregated by itself, and the units' scores are mixed
    damping: of metrics that invert a Gram matrix, as of `ridge_of`
    """

    metrics: Mapping[str, float]
    aggregation: str = "sum"
    exponent: float = 1.0
    damping: float = 0.01
    by_part: bool = False


@dataclass(frozen=True)
class UnitScores:
    """Higher for what is worth more, float64: heads [query heads], groups [KV heads], neurons
    [MLP width]. A group is scored with all its query heads."""

    heads: Tensor
    groups: Tensor
    neurons: Tensor


def score_layer(
    facts: Facts,
    tensors: Mapping[str, Tensor],
    statistics: LayerStatistics | None,
    scoring: Scoring,
) -> UnitScores:
    """Scores of a dense layer's units; `tensors` are the layer's, names relative to it.

    Scores that are mixed are divided by their mean over the sublayer's units first. ModelError
    where a score is no number, or what a metric needs was not collected.
    """
    attention, mlp = sublayers(facts, tensors, statistics, scoring.damping)
    return UnitScores(
        heads=_scores(attention, HEAD, facts.query_heads, scoring),
        groups=_scores(attention, GROUP, facts.kv_heads, scoring),
        neurons=_scores(mlp, NEURON, facts.ffn, scoring),
    )


def _scores(sublayer: Sublayer, parts: Sequence[Part], units: int, scoring: Scoring) -> Tensor:
    """[units] float64."""
    names = [name for name, weight in scoring.metrics.items() if weight > 0]
    found = {name: [METRICS[name](sublayer, part, units) for part in parts] for name in names}
    if not scoring.by_part:
        aggregated = {
            name: _aggregated([s for s in scores if s is not None], scoring.aggregation)
            for name, scores in found.items()
        }
        return _mixed(aggregated, scoring)
    table = []
    for number in range(len(parts)):
        of_part = {name: scores[number] for name, scores in found.items()}
        told = {name: scores for name, scores in of_part.items() if scores is not None}
        if told:
            table.append(_mixed(told, scoring))
    return _aggregated(table, scoring.aggregation)


def _mixed(scores: Mapping[str, Tensor], scoring: Scoring) -> Tensor:
    """[units]: of several metrics' scores the mean by weight, each over its own mean and raised."""
    total, mixed = sum(scoring.metrics[name] for name in scores), []
    for name, values in scores.items():
        mean = values.mean()
        if not torch.isfinite(mean):
            raise ModelError(f"{name} gives scores that are no numbers on the calibration text")
        # Where no unit is worth anything, all of them are worth the same.
        normed = values / mean.clamp(min=torch.finfo(mean.dtype).tiny)
        mixed.append(scoring.metrics[name] / total * normed**scoring.exponent)
    return torch.stack(mixed).sum(dim=0)


def _aggregated(scores: Sequence[Tensor], aggregation: str) -> Tensor:
    """[units] of the scores of a unit's parts, the last projection's last."""
    if aggregation == "last":
        return scores[-1]
    if aggregation == "product":
        # Of each part over its mean: products of four small numbers would else be none.
        scores = [score / score.mean().clamp(min=torch.finfo(score.dtype).tiny) for score in scores]
    stacked = torch.stack(list(scores))
    return {
        "sum": lambda: stacked.sum(dim=0),
        "mean": lambda: stacked.mean(dim=0),
        "max": lambda: stacked.amax(dim=0),
        "product": lambda: stacked.prod(dim=0),
    }[aggregation]()
