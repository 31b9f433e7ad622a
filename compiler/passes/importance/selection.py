# SPDX-License-Identifier: Apache-2.0
"""From scores to the units that stay, in numbers that grouped-query kernels can run."""

from __future__ import annotations

from torch import Tensor

from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import LayerSelection, LayerSpec
from prunec.compiler.passes.importance.scoring import UnitScores


def select_units(facts: Facts, scores: UnitScores, spec: LayerSpec) -> LayerSelection:
    """KV groups of the highest scores, in each as many query heads, and neurons.

    Equal scores: the unit that comes first stays.
    """
    groups = _highest(scores.groups, spec.kv_heads)
    heads = scores.heads.reshape(facts.kv_heads, -1)  # [KV groups, query heads of a group]
    per_group = heads.shape[1]
    queries = [
        group * per_group + head
        for group in groups
        for head in _highest(heads[group], spec.queries_per_group)
    ]
    return LayerSelection(tuple(queries), groups, _highest(scores.neurons, spec.ffn))


def _highest(scores: Tensor, count: int) -> tuple[int, ...]:
    order: list[int] = scores.argsort(descending=True, stable=True)[:count].tolist()
    return tuple(sorted(order))
