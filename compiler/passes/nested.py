# SPDX-License-Identifier: Apache-2.0
"""A layer at every size at once: one order and one factorisation per sublayer, cut where asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import LayerSelection, LayerSpec
from prunec.compiler.model.surgery import slice_layer
from prunec.compiler.passes.eliminate import HeadPath
from prunec.compiler.passes.least_squares import NestedSolution

Shape = tuple[int, int]  # query heads, KV heads


@dataclass(frozen=True)
class NestedAttention:
    """An attention sublayer at every shape of its path.

    stream_energy: sum of squares of the hidden states that its output is added to
    """

    head_dim: int
    path: HeadPath
    solution: NestedSolution
    stream_energy: float

    @property
    def shapes(self) -> list[Shape]:
        """The shapes on the path, dense first, (0, 0) last."""
        return [(len(queries), len(kv)) for queries, kv in self.path.states]

    def cut(self, facts: Facts, tensors: Mapping[str, Tensor], shape: Shape) -> CutLayer:
        """The sublayer at a shape; `tensors` are those of the dense layer, names relative to it."""
        queries, kv = self.path.states[self.shapes.index(shape)]
        _, weight = self.solution.weight(len(queries) * self.head_dim)
        selection = LayerSelection(queries, kv, ())
        return _cut(facts, tensors, selection, f"{facts.family.output}.weight", weight)


@dataclass(frozen=True)
class NestedMLP:
    """An MLP sublayer at every width; `stream_energy` as of an attention sublayer."""

    solution: NestedSolution
    stream_energy: float

    def cut(self, facts: Facts, tensors: Mapping[str, Tensor], width: int) -> CutLayer:
        """The sublayer at a width; `tensors` are those of the dense layer, names relative to it."""
        neurons, weight = self.solution.weight(width)
        selection = LayerSelection((), (), tuple(neurons.tolist()))
        return _cut(facts, tensors, selection, f"{facts.family.down}.weight", weight)


@dataclass(frozen=True)
class NestedLayer:
    """Both sublayers of a decoder layer at every size."""

    attention: NestedAttention
    mlp: NestedMLP

    def cut(self, facts: Facts, tensors: Mapping[str, Tensor], spec: LayerSpec) -> CutLayer:
        """The whole layer at a spec."""
        attention = self.attention.cut(facts, tensors, (spec.query_heads, spec.kv_heads))
        mlp = self.mlp.cut(facts, tensors, spec.ffn)
        selection = LayerSelection(
            attention.selection.query_heads, attention.selection.kv_heads, mlp.selection.neurons
        )
        return CutLayer(selection, attention.tensors | mlp.tensors)


@dataclass(frozen=True)
class CutLayer:
    """A layer, or one sublayer of it, at one size: the units that stay and its tensors.

    Rows are sliced, output and down projections refitted; dtype and device are the dense layer's.
    """

    selection: LayerSelection
    tensors: dict[str, Tensor]


def _cut(
    facts: Facts,
    tensors: Mapping[str, Tensor],
    selection: LayerSelection,
    refitted: str,
    weight: Tensor,
) -> CutLayer:
    sliced = slice_layer(facts, tensors, selection)
    if refitted in sliced:
        old = sliced[refitted]
        sliced[refitted] = weight.T.to(old.device, old.dtype).contiguous()
    return CutLayer(selection, sliced)
