# SPDX-License-Identifier: Apache-2.0
"""The floor to beat: keep the units with the largest weights, change no weight, look at no text."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import LayerSelection, LayerSpec
from prunec.compiler.model.surgery import slice_layer
from prunec.compiler.passes.nested import CutLayer


def prune_by_magnitude(facts: Facts, tensors: Mapping[str, Tensor], spec: LayerSpec) -> CutLayer:
    """One layer at a spec: KV groups, then query heads inside each, then neurons, by weight norm.

    `tensors` are those of the dense layer, names relative to it.
    """
    selection = largest_units(facts, tensors, spec)
    return CutLayer(selection, slice_layer(facts, tensors, selection))


def largest_units(facts: Facts, tensors: Mapping[str, Tensor], spec: LayerSpec) -> LayerSelection:
    """The units of largest squared norm, coupled tensors summed."""
    family = facts.family

    def rows(name: str, units: int) -> Tensor:
        return tensors[f"{name}.weight"].float().square().reshape(units, -1).sum(dim=1)

    def columns(name: str, units: int) -> Tensor:
        weight = tensors[f"{name}.weight"].float().square()
        return weight.sum(dim=0).reshape(units, -1).sum(dim=1)

    heads = rows(family.query, facts.query_heads) + columns(family.output, facts.query_heads)
    heads = heads.reshape(facts.kv_heads, -1)  # [KV groups, query heads of a group]
    groups = heads.sum(dim=1)
    groups += rows(family.key, facts.kv_heads) + rows(family.value, facts.kv_heads)
    neurons = rows(family.gate, facts.ffn) + rows(family.up, facts.ffn)
    neurons += columns(family.down, facts.ffn)

    kept_groups = _largest(groups, spec.kv_heads)
    per_group = facts.query_heads // facts.kv_heads
    queries = [
        group * per_group + head
        for group in kept_groups
        for head in _largest(heads[group], spec.queries_per_group)
    ]
    return LayerSelection(tuple(queries), kept_groups, _largest(neurons, spec.ffn))


def _largest(scores: Tensor, count: int) -> tuple[int, ...]:
    return tuple(sorted(scores.argsort(descending=True, stable=True)[:count].tolist()))
