# SPDX-License-Identifier: Apache-2.0
"""Score candidates of the published search: the whole model, physically small, every time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.modeling.modeling_prunec import PerLayerDecoderLayer
from prunec.compiler.passes.published import LayerLevels, cut_layer
from prunec.compiler.search.divergence import RenormalisedTeacher, TeacherDistributions
from prunec.compiler.search.published import Grid, Levels

#: Cut sublayers that are kept for the candidates to come.
CACHE_BYTES = 2 * 2**30


class PublishedScorer:
    """Divergence of the levels of a supernet; `token_forwards` counts what was run."""

    def __init__(
        self,
        decoder: Decoder,
        supernet: Sequence[LayerLevels],
        ids: Tensor,
        teacher: TeacherDistributions,
    ) -> None:
        """ids: [windows, length], the tokens of the last stage; `teacher` is over them."""
        self.decoder = decoder
        self.supernet = supernet
        self.ids = ids
        self.teacher = RenormalisedTeacher.of(teacher)
        self.token_forwards = 0
        self._cache: OrderedDict[tuple[int, int], PerLayerDecoderLayer] = OrderedDict()
        self._cached_bytes = 0

    @property
    def grid(self) -> Grid:
        """Units that stay at every level of every sublayer."""
        sublayers = [layer.attention for layer in self.supernet]
        sublayers += [layer.mlp for layer in self.supernet]
        return [{number: len(one.units) for number, one in each.items()} for each in sublayers]

    @torch.no_grad()
    def divergence(self, levels: Levels, windows: slice) -> float:
        """Mean over some windows, in nats per token."""
        ids, teacher = self.ids[windows], self.teacher[windows]
        layers, total = len(self.supernet), 0.0
        for batch in self.decoder.batches(*ids.shape):
            hidden = self.decoder.embed(ids[batch])
            for index in range(layers):
                attention = self._sublayer(index, levels[index])
                hidden = self.decoder.attend(attention, hidden)
                mlp = self._sublayer(layers + index, levels[layers + index])
                hidden = self.decoder.feed(mlp, hidden)
            found = teacher[batch].divergence(self.decoder.logits(hidden))
            total += float(found.double().sum())
        self.token_forwards += ids.numel()
        return total / len(ids)

    def _sublayer(self, site: int, number: int) -> PerLayerDecoderLayer:
        """A layer whose other half is absent."""
        key = (site, number)
        if key not in self._cache:
            index = site % len(self.supernet)
            found, tensors = self.supernet[index], self.decoder.layer_tensors(index)
            facts = self.decoder.facts
            if site == index:
                cut = cut_layer(facts, tensors, found.attention[number], None)
            else:
                cut = cut_layer(facts, tensors, None, found.mlp[number])
            layer = self.decoder.layer(index, cut.selection.spec(facts.head_dim), cut.tensors)
            self._cache[key] = layer
            self._cached_bytes += _bytes(layer)
            while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
                self._cached_bytes -= _bytes(self._cache.popitem(last=False)[1])
        self._cache.move_to_end(key)
        return self._cache[key]


def _bytes(layer: PerLayerDecoderLayer) -> int:
    return sum(parameter.nbytes for parameter in layer.parameters())
