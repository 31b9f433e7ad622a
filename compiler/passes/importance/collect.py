# SPDX-License-Identifier: Apache-2.0
"""Collect what metrics read of calibration text, layer by layer, for several groups of windows.

Without gradients the hidden states go through the dense model once, twice where the groups depend
on the windows' losses. With gradients they are kept before every layer, and the layers are then
gone through from the last to the first, each run once more and differentiated: memory is one
layer's, and the hidden states lie in files where they are many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.layout import dense_layout
from prunec.compiler.model.modeling.modeling_prunec import PerLayerDecoderLayer
from prunec.compiler.model.states import HiddenStates
from prunec.compiler.passes.importance.gradients import (
    LayerGradients,
    few_windows,
    layer_backward,
    loss_gradients,
    window_losses,
)
from prunec.compiler.passes.importance.statistics import LayerStatistics
from prunec.compiler.passes.importance.sums import LayerSums

#: Hidden states of all depths that are kept in memory; more go into a file.
STATE_BYTES = 2 * 2**30

Groups = Sequence[Tensor]  # of window indices


class Memory(Protocol):
    """Where statistics of finished layers are kept, so that collecting that was stopped goes on."""

    def has(self, layer: int) -> bool: ...

    def save(self, layer: int, statistics: Sequence[LayerStatistics]) -> None: ...

    def load_gradients(self, layer: int) -> Tensor | None: ...

    def save_gradients(self, layer: int, outward: Tensor) -> None: ...


@dataclass(frozen=True)
class CollectedInfo:
    """losses: [windows] float64, of the dense model in nats a token, None where nothing asked for
    them; groups: indices of each group's windows, ascending
    token_forwards: tokens sent through the whole model, a backward pass counted as two"""

    losses: Tensor | None
    groups: tuple[Tensor, ...]
    token_forwards: int


def passes(*, with_gradients: bool, by_loss: bool) -> int:
    """Times that a token goes through the model, a backward pass counted as two."""
    return 4 if with_gradients else 1 + by_loss


def collect(
    decoder: Decoder,
    ids: Tensor,
    choose_groups: Callable[[Tensor], Groups] | Groups,
    memory: Memory,
    *,
    with_gram: bool,
    with_gradients: bool,
    on_layer: Callable[[int, int], None] = lambda done, of: None,
) -> CollectedInfo:
    """Statistics of every layer of the dense model for every group of windows, into `memory`.

    ids: [windows, length]. `choose_groups` is given the losses of all windows, [windows] float64,
    and says which windows make a group; where they are known, it is the groups themselves.
    `on_layer` is told how many layers are done, of how many. With gradients layers are run in
    float32 whatever the decoder's dtype is, on hidden states of that dtype.
    """
    with torch.no_grad():
        collector = _Collector(decoder, ids, memory, with_gram, on_layer)
        if with_gradients:
            return collector.backward(choose_groups)
        return collector.forward(choose_groups)


@dataclass
class _Collector:
    decoder: Decoder
    ids: Tensor
    memory: Memory
    with_gram: bool
    on_layer: Callable[[int, int], None]

    @property
    def layers(self) -> int:
        return self.decoder.facts.layers

    def forward(self, choose: Callable[[Tensor], Groups] | Groups) -> CollectedInfo:
        """One pass for the statistics, after one for the losses where groups depend on them."""
        losses, steps = None, self.layers * passes(with_gradients=False, by_loss=callable(choose))
        if callable(choose):
            hidden = self.decoder.embedded(self.ids)
            for index in range(self.layers):
                layer = self._layer(self.decoder, index)
                for batch in self.decoder.batches(*self.ids.shape):
                    hidden[batch] = self.decoder.feed(
                        layer, self.decoder.attend(layer, hidden[batch])
                    )
                self.on_layer(index + 1, steps)
            losses = self._losses(self.decoder, lambda part: hidden[part])
            groups = _ascending(choose(losses))
        else:
            groups = _ascending(choose)
        hidden, decoder = self.decoder.embedded(self.ids), self.decoder
        for index in range(self.layers):
            layer, found = self._layer(decoder, index), []
            known = self.memory.has(index)
            for group in groups:
                sums = LayerSums.empty(decoder, with_gram=self.with_gram)
                for windows in self._batches(group):
                    before = hidden[windows]
                    with nullcontext() if known else sums.listening(decoder.facts, layer):
                        behind = decoder.feed(layer, decoder.attend(layer, before))
                    if not known:
                        sums.add_states(before, behind)
                    hidden[windows] = behind
                if not known:
                    found.append(sums.statistics({}))
            if not known:
                self.memory.save(index, found)
            self.on_layer(steps - self.layers + index + 1, steps)
        times = passes(with_gradients=False, by_loss=callable(choose))
        return self._info(losses, groups, times)

    def backward(self, choose: Callable[[Tensor], Groups] | Groups) -> CollectedInfo:
        """Forward once, keeping what enters each layer; then backward, layer by layer."""
        where = self.decoder.placement
        precise = Decoder(self.decoder.checkpoint, torch.float32, self.decoder.device, where)
        states = _states(self.decoder, self.ids)
        for batch in precise.batches(*self.ids.shape):
            states[0][batch] = precise.embed(self.ids[batch]).to(states[0].dtype)
        for index in range(self.layers):
            layer = self._layer(precise, index)
            for batch in precise.batches(*self.ids.shape):
                behind = precise.feed(layer, precise.attend(layer, states[index][batch].float()))
                states[index + 1][batch] = behind.to(states[0].dtype)
            self.on_layer(index + 1, 2 * self.layers)
        losses = self._losses(precise, lambda part: states[self.layers][part].float())
        groups = _ascending(choose(losses) if callable(choose) else choose)
        self._go_back(precise, states, groups)
        return self._info(losses, groups, passes(with_gradients=True, by_loss=True))

    def _go_back(
        self, decoder: Decoder, states: Sequence[HiddenStates], groups: Sequence[Tensor]
    ) -> None:
        """From the last layer to the first, or on from where collecting was stopped."""
        start, outward = self.layers, None
        while start and self.memory.has(start - 1):
            start -= 1
        if start < self.layers:
            outward = self.memory.load_gradients(start)
        if start and outward is None:
            start = self.layers
            outward = torch.empty(*self.ids.shape, decoder.facts.hidden_size, dtype=torch.float32)
            for batch in decoder.batches(*self.ids.shape):
                last = states[start][batch].float()
                outward[batch] = loss_gradients(decoder, last, self.ids[batch]).cpu()
        decoder.release()
        for index in reversed(range(start)):
            assert outward is not None
            tensors = decoder.layer_tensors(index)
            layer, found = self._layer(decoder, index), []
            for group in groups:
                sums = LayerSums.empty(decoder, with_gram=self.with_gram)
                gradients = LayerGradients()
                for windows in self._batches(group):
                    before = states[index][windows].float()
                    with sums.listening(decoder.facts, layer):
                        back, behind = layer_backward(
                            decoder, layer, before, outward[windows].to(before), gradients
                        )
                    sums.add_states(before, behind)
                    outward[windows] = back.cpu()
                found.append(sums.statistics(gradients.saliency(decoder.facts, tensors)))
            self.memory.save_gradients(index, outward)
            self.memory.save(index, found)
            self.on_layer(2 * self.layers - index, 2 * self.layers)

    def _layer(self, decoder: Decoder, index: int) -> PerLayerDecoderLayer:
        spec = dense_layout(decoder.facts)[index]
        return decoder.layer(index, spec, decoder.layer_tensors(index))

    def _batches(self, group: Tensor) -> Iterator[Tensor]:
        for batch in self.decoder.batches(len(group), self.ids.shape[1]):
            yield group[batch]

    def _losses(self, decoder: Decoder, hidden: Callable[[slice], Tensor]) -> Tensor:
        found = [
            window_losses(decoder, hidden(part), self.ids[part])
            for part in few_windows(decoder, *self.ids.shape)
        ]
        return torch.cat(found).double().cpu()

    def _info(self, losses: Tensor | None, groups: tuple[Tensor, ...], times: int) -> CollectedInfo:
        return CollectedInfo(losses, groups, times * self.ids.numel())


def _ascending(groups: Groups) -> tuple[Tensor, ...]:
    return tuple(group.sort().values for group in groups)


def _states(decoder: Decoder, ids: Tensor) -> list[HiddenStates]:
    """Hidden states before every layer and behind the last one, at the decoder's dtype: on the
    host, or in files where they are many."""
    shape, depths = (*ids.shape, decoder.facts.hidden_size), decoder.facts.layers + 1
    placement = replace(decoder.placement, states_on_host=True)
    if depths * math.prod(shape) * decoder.dtype.itemsize > STATE_BYTES:
        placement = replace(placement, states_in_file=True)
    return [HiddenStates(shape, decoder.dtype, decoder.device, placement) for _ in range(depths)]
