# SPDX-License-Identifier: Apache-2.0
"""Gram statistics of one sublayer, on two streams: dense inputs and pruned ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from prunec.compiler.model.decoder import Decoder
from prunec.compiler.passes.least_squares import GramStatistics


@dataclass
class Streams:
    """Hidden states of all calibration windows at one depth, [windows, length, hidden_size].

    pruned: as the model computes them whose layers so far are pruned
    dense:  as the dense model computes them; None where nothing is fitted to those
    """

    pruned: Tensor
    dense: Tensor | None

    @classmethod
    def start(cls, decoder: Decoder, ids: Tensor, *, with_dense: bool) -> Streams:
        hidden = decoder.embed(ids)
        return cls(hidden, hidden.clone() if with_dense else None)


def advance(decoder: Decoder, hidden: Tensor, sublayer: Callable[[Tensor], Tensor]) -> None:
    """Send hidden states through a sublayer, batch by batch, in place."""
    for batch in decoder.batches(*hidden.shape[:2]):
        hidden[batch] = sublayer(hidden[batch])


def energy(hidden: Tensor) -> float:
    """Sum of squares over all hidden states."""
    return float(sum(window.float().square().sum().double() for window in hidden))


def gram_statistics(
    decoder: Decoder,
    streams: Streams,
    sublayer: Callable[[Tensor], Tensor],
    projection: nn.Linear,
) -> GramStatistics:
    """Sums for `projection`, the last linear map of a (dense) sublayer.

    Both streams run through the dense sublayer's weights; the dense stream is left advanced by
    it, the pruned stream is left where it was.
    """
    statistics = GramStatistics.empty(
        projection.in_features,
        projection.out_features,
        with_missing=streams.dense is not None,
        device=decoder.device,
    )
    seen: list[Tensor] = []
    hook = projection.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    try:
        for batch in decoder.batches(*streams.pruned.shape[:2]):
            seen.clear()
            missing = None
            behind = sublayer(streams.pruned[batch])
            if streams.dense is not None:
                streams.dense[batch] = sublayer(streams.dense[batch])
                missing = (streams.dense[batch].float() - behind.float()).flatten(0, 1)
            statistics.add(seen[0], missing)
    finally:
        hook.remove()
    return statistics
