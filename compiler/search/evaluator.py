# SPDX-License-Identifier: Apache-2.0
"""Score layouts by running them: physically small layers, the same tokens for every candidate."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.layout import LayerSpec, Layout
from prunec.compiler.model.modeling_prunec_llama import PrunecLlamaDecoderLayer
from prunec.compiler.passes.nested import CutLayer, NestedLayer
from prunec.compiler.search.divergence import TeacherDistributions, divergence

#: Cut sublayers that are kept for the candidates to come.
CACHE_BYTES = 2 * 2**30


class Evaluator:
    """Divergence from the dense model of any layout that a supernet can be cut to.

    `token_forwards` counts tokens sent through a candidate, the unit of every search's budget.
    """

    def __init__(
        self,
        decoder: Decoder,
        supernet: Sequence[NestedLayer],
        ids: Tensor,
        teacher: TeacherDistributions,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """ids: [windows, length], the tokens that all candidates are scored on."""
        self.decoder = decoder
        self.supernet = supernet
        self.ids = ids
        self.teacher = teacher
        self.token_forwards = 0
        # A sublayer is a layer whose other half is absent; the two never share a key, except
        # where both are absent and alike.
        self._cache: OrderedDict[tuple[int, LayerSpec], PrunecLlamaDecoderLayer] = OrderedDict()
        self._cache_bytes = cache_bytes
        self._cached_bytes = 0

    @torch.no_grad()
    def divergences(self, layout: Layout, windows: int) -> Tensor:
        """[windows] float64: mean divergence on each of the first `windows` windows."""
        length = self.ids.shape[1]
        scores = []
        for batch in self.decoder.batches(windows, length):
            hidden = self.decoder.embed(self.ids[batch])
            for index, spec in enumerate(layout):
                attention, mlp = self._sublayers(index, spec)
                hidden = self.decoder.attend(attention, hidden)
                hidden = self.decoder.feed(mlp, hidden)
            scores.append(divergence(self.teacher[batch], self.decoder.logits(hidden)))
        self.token_forwards += windows * length
        return torch.cat(scores).double().cpu()

    def _sublayers(
        self, index: int, spec: LayerSpec
    ) -> tuple[PrunecLlamaDecoderLayer, PrunecLlamaDecoderLayer]:
        nested, facts = self.supernet[index], self.decoder.facts

        def cut_attention() -> CutLayer:
            shape = (spec.query_heads, spec.kv_heads)
            return nested.attention.cut(facts, self.decoder.layer_tensors(index), shape)

        def cut_mlp() -> CutLayer:
            return nested.mlp.cut(facts, self.decoder.layer_tensors(index), spec.ffn)

        return (
            self._cached(index, replace(spec, ffn=0), cut_attention),
            self._cached(index, replace(spec, query_heads=0, kv_heads=0), cut_mlp),
        )

    def _cached(
        self, index: int, spec: LayerSpec, cut: Callable[[], CutLayer]
    ) -> PrunecLlamaDecoderLayer:
        if (index, spec) not in self._cache:
            layer = self.decoder.layer(index, spec, cut().tensors)
            self._cache[index, spec] = layer
            self._cached_bytes += _bytes(layer)
            while self._cached_bytes > self._cache_bytes and len(self._cache) > 1:
                _, oldest = self._cache.popitem(last=False)
                self._cached_bytes -= _bytes(oldest)
        self._cache.move_to_end((index, spec))
        return self._cache[index, spec]


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())
