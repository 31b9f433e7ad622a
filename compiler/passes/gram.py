# SPDX-License-Identifier: Apache-2.0
"""Gram statistics of one sublayer, on two streams: dense inputs and pruned ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.states import HiddenStates
from prunec.compiler.passes.least_squares import GramStatistics


@dataclass
class Streams:
    """Hidden states of all calibration windows at one depth.

    pruned: as the model computes them whose layers so far are pruned
    dense:  as the dense model computes them; None where nothing is fitted to those
    """

    pruned: HiddenStates
    dense: HiddenStates | None

    @classmethod
    def start(cls, decoder: Decoder, ids: Tensor, *, with_dense: bool) -> Streams:
        pruned, dense = decoder.states(*ids.shape), None
        if with_dense:
            dense = decoder.states(*ids.shape)
        for batch in decoder.batches(*ids.shape):
            pruned[batch] = embedded = decoder.embed(ids[batch])
            if dense is not None:
                dense[batch] = embedded
        return cls(pruned, dense)


def advance(decoder: Decoder, hidden: HiddenStates, sublayer: Callable[[Tensor], Tensor]) -> None:
    """Send hidden states through a sublayer, batch by batch, in place."""
    for batch in decoder.batches(*hidden.shape[:2]):
        hidden[batch] = sublayer(hidden[batch])


def energy(hidden: HiddenStates) -> float:
    """Sum of squares over all hidden states."""
    windows = (hidden[number : number + 1] for number in range(len(hidden)))
    return float(sum(window.float().square().sum().double() for window in windows))


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
            missing = None
            behind = sublayer(streams.pruned[batch])
            inputs = seen.pop()
            if streams.dense is not None:
                streams.dense[batch] = dense = sublayer(streams.dense[batch])
                missing = (dense.float() - behind.float()).flatten(0, 1)
                seen.clear()
            statistics.add(inputs, missing)
    finally:
        hook.remove()
    return statistics
