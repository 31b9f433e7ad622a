# SPDX-License-Identifier: Apache-2.0
"""Solved layers in the store: one size of a layer, or all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prunec.compiler.model.layout import plain_selection, selection_from_plain
from prunec.compiler.model.tensor_file import Sliced
from prunec.compiler.passes.eliminate import HeadPath
from prunec.compiler.passes.least_squares import NestedSolution
from prunec.compiler.passes.nested import CutLayer, NestedAttention, NestedLayer, NestedMLP
from prunec.compiler.store import Entry
from prunec.compiler.stored_tensor import open_tensors


@dataclass(frozen=True)
class StoredLayers:
    """The memory of a walk: each layer's cut, and for a supernet also its every size.

    Cuts come back on `device`, where the walk goes on.
    """

    entry: Entry
    device: torch.device
    with_nested: bool

    def load(self, index: int) -> CutLayer | None:
        if self.with_nested and self.entry.tensor_file(f"nested-{index}") is None:
            return None
        cut = load_cut(self.entry, index)
        if cut is None:
            return None
        on_device = {name: tensor.to(self.device) for name, tensor in cut.tensors.items()}
        return CutLayer(cut.selection, on_device)

    def save(self, index: int, nested: NestedLayer, cut: CutLayer) -> None:
        if self.with_nested:
            self.entry.forget_tensors(f"layer-{index}")  # never beside the sizes of another one
            save_nested(self.entry, index, nested)
        save_cut(self.entry, index, cut)


def save_cut(entry: Entry, index: int, cut: CutLayer) -> None:
    entry.save_tensors(f"layer-{index}", cut.tensors, plain_selection(cut.selection))


def load_cut(entry: Entry, index: int) -> CutLayer | None:
    found = entry.load_tensors(f"layer-{index}")
    if found is None:
        return None
    tensors, units = found
    return CutLayer(selection_from_plain(units), tensors)


def save_nested(entry: Entry, index: int, nested: NestedLayer) -> None:
    """Float32 on disk: levels are only compared with each other; the winner is solved anew."""
    tensors: dict[str, Sliced] = {}
    for name, solution in (
        ("attention", nested.attention.solution),
        ("mlp", nested.mlp.solution),
    ):
        tensors[f"{name}.order"] = solution.order
        tensors[f"{name}.factor"] = solution.factor
        tensors[f"{name}.projected"] = solution.projected
    dtypes = {name: torch.float32 for name in tensors if not name.endswith(".order")}
    facts = {
        "states": [[list(queries), list(kv)] for queries, kv in nested.attention.path.states],
        "head_dim": nested.attention.head_dim,
        "attention_energy": nested.attention.stream_energy,
        "mlp_energy": nested.mlp.stream_energy,
    }
    entry.save_tensors(f"nested-{index}", tensors, facts, dtypes)


def load_nested(entry: Entry, index: int, device: torch.device) -> NestedLayer:
    """A layer that is cut on a device, from factors that stay in their file.

    LostResultError if it is missing or damaged.
    """
    tensors, facts = open_tensors(entry, f"nested-{index}")

    def solution(name: str) -> NestedSolution:
        order = tensors[f"{name}.order"][:].to(device)
        return NestedSolution(order, tensors[f"{name}.factor"], tensors[f"{name}.projected"])

    states = tuple((tuple(queries), tuple(kv)) for queries, kv in facts["states"])
    attention = solution("attention")
    path = HeadPath(states, attention.order)
    return NestedLayer(
        NestedAttention(facts["head_dim"], path, attention, facts["attention_energy"]),
        NestedMLP(solution("mlp"), facts["mlp_energy"]),
    )
