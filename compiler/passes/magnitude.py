# SPDX-License-Identifier: Apache-2.0
"""The floor to beat: keep the units with the largest weights, change no weight, look at no text."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from prunec.compiler.model.facts import Facts
from prunec.compiler.model.families import Rows
from prunec.compiler.model.layout import LayerSelection, LayerSpec, dense_layout, rows_of
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
    family, rows = facts.family, rows_of(dense_layout(facts)[0])
    squared: dict[Rows, Tensor] = {}  # of every row of every part
    for name, parts in family.inputs.items():
        norms = tensors[f"{name}.weight"].float().square().sum(dim=1)
        squared |= dict(zip(parts, norms.split([rows[part] for part in parts]), strict=True))

    def units(part: Rows, count: int) -> Tensor:
        return squared[part].reshape(count, -1).sum(dim=1)

    def columns(name: str, count: int) -> Tensor:
        weight = tensors[f"{name}.weight"].float().square()
        return weight.sum(dim=0).reshape(count, -1).sum(dim=1)

    heads = units("query", facts.query_heads) + columns(family.output, facts.query_heads)
    heads = heads.reshape(facts.kv_heads, -1)  # [KV groups, query heads of a group]
    groups = heads.sum(dim=1)
    groups += units("key", facts.kv_heads) + units("value", facts.kv_heads)
    neurons = units("gate", facts.ffn) + units("up", facts.ffn)
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
