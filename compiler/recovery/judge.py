# SPDX-License-Identifier: Apache-2.0
"""How far a model is from the dense one while its layers are recovered, from the first on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.layout import dense_layout
from prunec.compiler.model.modeling.modeling_prunec import PerLayerDecoderLayer
from prunec.compiler.model.states import HiddenStates
from prunec.compiler.passes.gram import advance
from prunec.compiler.passes.nested import CutLayer
from prunec.compiler.recovery.sizes import JUDGED_LOGITS


@dataclass(frozen=True)
class Judge:
    """Tells how far a model is from the dense one whose last hidden states are `dense`."""

    decoder: Decoder
    pruned: Callable[[int], CutLayer]
    dense: HiddenStates
    before: float

    @classmethod
    def of(cls, decoder: Decoder, pruned: Callable[[int], CutLayer], held_out: Tensor) -> Judge:
        dense = decoder.embedded(held_out)
        for index, spec in enumerate(dense_layout(decoder.facts)):
            layer = decoder.layer(index, spec, decoder.layer_tensors(index))
            advance(decoder, dense, partial(through, decoder, layer))
        judge = cls(decoder, pruned, dense, math.nan)
        return replace(judge, before=judge.divergence(decoder.embedded(held_out), 0))

    def divergence(self, hidden: HiddenStates, index: int) -> float:
        """Mean KL(dense ‖ model) in nats per token, where pruned layers from `index` on follow the
        hidden states."""
        decoder, hidden = self.decoder, hidden.clone()
        for later in range(index, decoder.facts.layers):
            layer = built(decoder, later, self.pruned(later))
            advance(decoder, hidden, partial(through, decoder, layer))
        windows, length = hidden.shape[:2]
        size, total = max(1, JUDGED_LOGITS // (length * decoder.facts.vocab_size)), 0.0
        for first in range(0, windows, size):
            batch = slice(first, first + size)
            wanted = decoder.logits(self.dense[batch]).log_softmax(dim=-1)
            given = decoder.logits(hidden[batch]).log_softmax(dim=-1)
            total += float((wanted.exp() * (wanted - given)).sum(dim=-1).double().sum())
        return total / (windows * length)


def through(decoder: Decoder, layer: PerLayerDecoderLayer, hidden: Tensor) -> Tensor:
    """Hidden states behind a whole layer."""
    return decoder.feed(layer, decoder.attend(layer, hidden))


def built(
    decoder: Decoder, index: int, cut: CutLayer, *, copied: bool = False
) -> PerLayerDecoderLayer:
    tensors = cut.tensors
    if copied:
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    return decoder.layer(index, cut.selection.spec(decoder.facts.head_dim), tensors)
