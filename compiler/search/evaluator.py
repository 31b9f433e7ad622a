# SPDX-License-Identifier: Apache-2.0
"""Score layouts by running them: physically small layers, the same tokens for every candidate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.layout import LayerSpec, Layout
from prunec.compiler.model.modeling.modeling_prunec import PerLayerDecoderLayer
from prunec.compiler.model.states import HiddenStates
from prunec.compiler.passes.nested import NestedLayer
from prunec.compiler.search.cuts import Cuts
from prunec.compiler.search.divergence import Teacher, divergence


class Evaluator:
    """Divergence from the dense model of any layout that a supernet can be cut to.

    A candidate is run sublayer by sublayer, all of its windows through one before the next is
    fetched. `token_forwards` counts tokens sent through a candidate, the unit of every search's
    budget; a candidate that could start from kept hidden states counts like any other.
    """

    def __init__(
        self, decoder: Decoder, supernet: Sequence[NestedLayer], ids: Tensor, teacher: Teacher
    ) -> None:
        """ids: [windows, length], the tokens that all candidates are scored on.

        What is kept for the candidates to come is bounded by the decoder's placement.
        """
        self.decoder = decoder
        self.supernet = supernet
        self.ids = ids
        self.teacher = teacher
        self.token_forwards = 0
        self._cuts = Cuts(decoder)
        self._base: Layout = ()
        # What the first sublayer is given, and hidden states of the base before some of the others,
        # by the sublayer's number: 2i for the attention of layer i, 2i + 1 for its MLP.
        self._embedded = decoder.embedded(ids)
        self._states: dict[int, Tensor] = {}  # [windows, length, hidden_size]

    @torch.no_grad()
    def rebase(self, layout: Layout) -> Tensor:
        """[windows] float64: the divergence of a layout that many candidates will begin like.

        Its hidden states are kept, so that a candidate is run from its first other sublayer on.
        """
        decoder, sites = self.decoder, 2 * len(layout)
        shape = (*self.ids.shape, decoder.facts.hidden_size)
        all_bytes = sites * math.prod(shape) * decoder.dtype.itemsize
        stride = max(1, math.ceil(all_bytes / max(decoder.placement.state_bytes, 1)))
        self._base = ()
        self._states = {
            site: torch.empty(shape, dtype=decoder.dtype, device=decoder.device)
            for site in range(stride, sites, stride)
        }
        scores = self._run(layout, range(len(self.ids)), keep=True)
        self._base = layout
        return scores

    @torch.no_grad()
    def divergences(self, layout: Layout, windows: Sequence[int]) -> Tensor:
        """[windows] float64: mean divergence on each of some windows, by their numbers."""
        return self._run(layout, windows, keep=False)

    def scored(self, layouts: Sequence[Layout], windows: Sequence[int]) -> Iterator[Tensor]:
        """`divergences` of each layout."""
        return (self.divergences(layout, windows) for layout in layouts)

    def _run(self, layout: Layout, windows: Sequence[int], *, keep: bool) -> Tensor:
        numbers, count, length = torch.tensor(windows), len(windows), self.ids.shape[1]
        batches = [*self.decoder.batches(count, length)]
        shared = self._shared_sites(layout)
        start = max((site for site in self._states if site <= shared), default=0)
        kept: Tensor | HiddenStates = self._states[start] if start else self._embedded
        hidden = self.decoder.states(count, length)
        for batch in batches:
            hidden[batch] = kept[numbers[batch]]
        for site in range(start, 2 * len(layout)):
            run = self.decoder.feed if site % 2 else self.decoder.attend
            sublayer = self._sublayer(site, layout[site // 2])
            for batch in batches:
                before = hidden[batch]
                if keep and site in self._states:
                    self._states[site][numbers[batch]] = before
                hidden[batch] = run(sublayer, before)
        scores = [
            divergence(self.teacher[numbers[few]], self.decoder.logits(hidden[few]))
            for few in self.decoder.few(count, length)
        ]
        self.token_forwards += count * length
        return torch.cat(scores).double().cpu()

    def _shared_sites(self, layout: Layout) -> int:
        """How many sublayers from the first on are those of the base."""
        if not self._base:
            return 0
        for index, (ours, base) in enumerate(zip(layout, self._base, strict=True)):
            if (ours.query_heads, ours.kv_heads) != (base.query_heads, base.kv_heads):
                return 2 * index
            if ours.ffn != base.ffn:
                return 2 * index + 1
        return 2 * len(layout)

    def _sublayer(self, site: int, spec: LayerSpec) -> PerLayerDecoderLayer:
        """A layer at a spec, whose other half is absent."""
        index, is_mlp = divmod(site, 2)
        alone = replace(spec, query_heads=0, kv_heads=0) if is_mlp else replace(spec, ffn=0)

        def cut() -> dict[str, Tensor]:
            facts, nested = self.decoder.facts, self.supernet[index]
            tensors = self.decoder.layer_tensors(index, having=alone)
            if is_mlp:
                return nested.mlp.cut(facts, tensors, spec.ffn).tensors
            shape = (spec.query_heads, spec.kv_heads)
            return nested.attention.cut(facts, tensors, shape).tensors

        return self._cuts.get(index, alone, cut)
