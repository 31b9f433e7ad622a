# SPDX-License-Identifier: Apache-2.0
"""Score layouts by running them: physically small layers, the same tokens for every candidate."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.layout import LayerSpec, Layout
from prunec.compiler.model.modeling.modeling_prunec import PerLayerDecoderLayer
from prunec.compiler.passes.nested import CutLayer, NestedLayer
from prunec.compiler.search.divergence import TeacherDistributions, divergence

#: Cut sublayers that are kept for the candidates to come.
CUT_BYTES = 2 * 2**30

#: Logits that are alive at once.
LOGIT_BYTES = 2**27

#: Hidden states of the base layout that are kept for candidates that begin as it does.
STATE_BYTES = 2**30


class Evaluator:
    """Divergence from the dense model of any layout that a supernet can be cut to.

    `token_forwards` counts tokens sent through a candidate, the unit of every search's budget; a
    candidate that could start from kept hidden states counts like any other.
    """

    def __init__(
        self,
        decoder: Decoder,
        supernet: Sequence[NestedLayer],
        ids: Tensor,
        teacher: TeacherDistributions,
        *,
        cut_bytes: int = CUT_BYTES,
        state_bytes: int = STATE_BYTES,
    ) -> None:
        """ids: [windows, length], the tokens that all candidates are scored on."""
        self.decoder = decoder
        self.supernet = supernet
        self.ids = ids
        self.teacher = teacher
        self.token_forwards = 0
        # A sublayer is a layer whose other half is absent; the two never share a key, except
        # where both are absent and alike.
        self._cuts: OrderedDict[tuple[int, LayerSpec], PerLayerDecoderLayer] = OrderedDict()
        self._cut_bytes_left = cut_bytes
        self._base: Layout = ()
        # Hidden states of the base before some of its sublayers, by the sublayer's number:
        # 2i for the attention of layer i, 2i + 1 for its MLP. [windows, length, hidden_size]
        self._states: dict[int, Tensor] = {}
        sites = 2 * decoder.facts.layers
        site_bytes = ids.numel() * decoder.facts.hidden_size * decoder.dtype.itemsize
        self._stride = max(1, math.ceil(sites * site_bytes / max(state_bytes, 1)))

    @torch.no_grad()
    def rebase(self, layout: Layout) -> Tensor:
        """[windows] float64: the divergence of a layout that many candidates will begin like.

        Its hidden states are kept, so that a candidate is run from its first other sublayer on.
        """
        hidden_size, sites = self.decoder.facts.hidden_size, 2 * len(layout)
        self._base = ()
        self._states = {
            site: torch.empty(
                *self.ids.shape, hidden_size, dtype=self.decoder.dtype, device=self.decoder.device
            )
            for site in range(self._stride, sites, self._stride)
        }
        scores = self._run(layout, slice(0, len(self.ids)), keep=True)
        self._base = layout
        return scores

    @torch.no_grad()
    def divergences(self, layout: Layout, windows: slice) -> Tensor:
        """[windows] float64: mean divergence on each of some windows."""
        return self._run(layout, windows, keep=False)

    def _run(self, layout: Layout, windows: slice, *, keep: bool) -> Tensor:
        length = self.ids.shape[1]
        start = max((s for s in self._states if s <= self._shared_sites(layout)), default=0)
        scores: list[Tensor] = []
        for batch in self.decoder.batches(windows.stop - windows.start, length):
            here = slice(windows.start + batch.start, windows.start + batch.stop)
            hidden = self._states[start][here] if start else self.decoder.embed(self.ids[here])
            for site in range(start, 2 * len(layout)):
                if keep and site in self._states:
                    self._states[site][here] = hidden
                index = site // 2
                if site % 2 == 0:
                    hidden = self.decoder.attend(self._attention(index, layout[index]), hidden)
                else:
                    hidden = self.decoder.feed(self._mlp(index, layout[index]), hidden)
            scores.extend(self._compared(hidden, here))
        self.token_forwards += (windows.stop - windows.start) * length
        return torch.cat(scores).double().cpu()

    def _compared(self, hidden: Tensor, windows: slice) -> Iterator[Tensor]:
        """Divergences of some windows from their last hidden states, few logits at a time."""
        length = self.ids.shape[1]
        size = max(1, LOGIT_BYTES // (4 * length * self.decoder.facts.vocab_size))
        for start in range(0, len(hidden), size):
            part = slice(windows.start + start, min(windows.start + start + size, windows.stop))
            logits = self.decoder.logits(hidden[start : start + size])
            yield divergence(self.teacher[part], logits)

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

    def _attention(self, index: int, spec: LayerSpec) -> PerLayerDecoderLayer:
        def cut() -> CutLayer:
            tensors = self.decoder.layer_tensors(index)
            shape = (spec.query_heads, spec.kv_heads)
            return self.supernet[index].attention.cut(self.decoder.facts, tensors, shape)

        return self._cached(index, replace(spec, ffn=0), cut)

    def _mlp(self, index: int, spec: LayerSpec) -> PerLayerDecoderLayer:
        def cut() -> CutLayer:
            tensors = self.decoder.layer_tensors(index)
            return self.supernet[index].mlp.cut(self.decoder.facts, tensors, spec.ffn)

        return self._cached(index, replace(spec, query_heads=0, kv_heads=0), cut)

    def _cached(
        self, index: int, spec: LayerSpec, cut: Callable[[], CutLayer]
    ) -> PerLayerDecoderLayer:
        if (index, spec) not in self._cuts:
            layer = self.decoder.layer(index, spec, cut().tensors)
            self._cuts[index, spec] = layer
            self._cut_bytes_left -= _bytes(layer)
            while self._cut_bytes_left < 0 and len(self._cuts) > 1:
                _, oldest = self._cuts.popitem(last=False)
                self._cut_bytes_left += _bytes(oldest)
        self._cuts.move_to_end((index, spec))
        return self._cuts[index, spec]


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())
