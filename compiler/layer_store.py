# SPDX-License-Identifier: Apache-2.0
"""Solved layers in the store: one size of a layer, or all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prunec.compiler.model.layout import LayerSelection
from prunec.compiler.passes.eliminate import HeadPath
from prunec.compiler.passes.least_squares import NestedSolution
from prunec.compiler.passes.nested import CutLayer, NestedAttention, NestedLayer, NestedMLP
from prunec.compiler.store import Entry


@dataclass(frozen=True)
class StoredLayers:
    """The memory of a walk: each layer's cut, and for a supernet also its every size.

    Cuts come back on `device`, where the walk goes on.
    """

    entry: Entry
    device: torch.device
    with_nested: bool

    def load(self, index: int) -> CutLayer | None:
        if self.with_nested and self.entry.load_tensors(f"nested-{index}") is None:
            return None
        cut = load_cut(self.entry, index)
        if cut is None:
            return None
        on_device = {name: tensor.to(self.device) for name, tensor in cut.tensors.items()}
        return CutLayer(cut.selection, on_device)

    def save(self, index: int, nested: NestedLayer, cut: CutLayer) -> None:
        if self.with_nested:
            save_nested(self.entry, index, nested)
        save_cut(self.entry, index, cut)


def save_cut(entry: Entry, index: int, cut: CutLayer) -> None:
    selection = cut.selection
    units = {
        "query_heads": list(selection.query_heads),
        "kv_heads": list(selection.kv_heads),
        "neurons": list(selection.neurons),
    }
    if selection.query_groups:
        units["query_groups"] = list(selection.query_groups)
    entry.save_tensors(f"layer-{index}", cut.tensors, units)


def load_cut(entry: Entry, index: int) -> CutLayer | None:
    found = entry.load_tensors(f"layer-{index}")
    if found is None:
        return None
    tensors, units = found
    selection = LayerSelection(**{name: tuple(indices) for name, indices in units.items()})
    return CutLayer(selection, tensors)


def save_nested(entry: Entry, index: int, nested: NestedLayer) -> None:
    """Float32 on disk: levels are only compared with each other; the winner is solved anew."""
    tensors = {}
    for name, solution in (
        ("attention", nested.attention.solution),
        ("mlp", nested.mlp.solution),
    ):
        tensors[f"{name}.order"] = solution.order
        tensors[f"{name}.factor"] = solution.factor.float()
        tensors[f"{name}.projected"] = solution.projected.float()
    facts = {
        "states": [[list(queries), list(kv)] for queries, kv in nested.attention.path.states],
        "head_dim": nested.attention.head_dim,
        "attention_energy": nested.attention.stream_energy,
        "mlp_energy": nested.mlp.stream_energy,
    }
    entry.save_tensors(f"nested-{index}", tensors, facts)


def load_nested(entry: Entry, index: int, device: torch.device) -> NestedLayer:
    tensors, facts = entry.require_tensors(f"nested-{index}")

    def solution(name: str) -> NestedSolution:
        parts = (tensors[f"{name}.{part}"].to(device) for part in ("order", "factor", "projected"))
        return NestedSolution(*parts)

    states = tuple((tuple(queries), tuple(kv)) for queries, kv in facts["states"])
    attention = solution("attention")
    path = HeadPath(states, attention.order)
    return NestedLayer(
        NestedAttention(facts["head_dim"], path, attention, facts["attention_energy"]),
        NestedMLP(solution("mlp"), facts["mlp_energy"]),
    )
