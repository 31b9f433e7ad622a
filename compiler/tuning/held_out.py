# SPDX-License-Identifier: Apache-2.0
"""What a pruned model is worth on text that it was not calibrated on, one layer in memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.modeling.modeling_prunec import PerLayerDecoderLayer
from prunec.compiler.passes.importance.gradients import few_windows, window_losses
from prunec.compiler.search.divergence import Teacher, divergence


@dataclass(frozen=True)
class HeldOut:
    """Text that trials are judged on.

    ids: [windows, length]; teacher: the dense model's distributions there, None where what is
    sought is the pruned model's own perplexity
    """

    ids: Tensor
    teacher: Teacher | None


def scores_of(
    decoder: Decoder,
    layers: Iterable[PerLayerDecoderLayer],
    held_out: HeldOut,
    windows: slice,
) -> Tensor:
    """[windows] float64: divergence from the dense model, or next-token loss."""
    ids = held_out.ids[windows]
    hidden = decoder.embedded(ids)
    for layer in layers:
        for batch in decoder.batches(*ids.shape):
            hidden[batch] = decoder.feed(layer, decoder.attend(layer, hidden[batch]))
    found = []
    for part in few_windows(decoder, *ids.shape):
        if held_out.teacher is None:
            found.append(window_losses(decoder, hidden[part], ids[part]))
        else:
            here = slice(windows.start + part.start, windows.start + part.stop)
            found.append(divergence(held_out.teacher[here], decoder.logits(hidden[part])))
    return torch.cat(found).double().cpu()


def value_of(scores: Sequence[Tensor], held_out: HeldOut) -> float:
    """The objective: mean divergence in nats per token, or perplexity."""
    mean = float(torch.cat(list(scores)).mean())
    return mean if held_out.teacher else _perplexity(mean)


def _perplexity(loss: float) -> float:
    """Infinite where it is too large for a number, which makes the trial a failed one."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
