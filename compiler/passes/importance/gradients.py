# SPDX-License-Identifier: Apache-2.0
"""Gradients of the next-token loss for the weights of one layer, summed up by their vectors.

Every window has a loss of its own, the mean over its positions. The gradient of a window for a
projection's weights is the product of what flows back into its outputs and its inputs, so that the
windows of a batch can be told apart, and no more than two sums of a layer's size are alive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import dense_layout, rows_of
from prunec.compiler.model.modeling.modeling_prunec import PerLayerDecoderLayer
from prunec.compiler.passes.importance.statistics import DOWN, OUTPUT, Part, Saliency

#: Logits that are alive at once.
LOGIT_BYTES = 2**28


def window_losses(decoder: Decoder, hidden: Tensor, ids: Tensor) -> Tensor:
    """[windows]: the mean next-token loss of each, in nats, from the last hidden states."""
    logits = decoder.logits(hidden)[:, :-1]
    targets = ids[:, 1:].to(logits.device)
    each = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return each.reshape(targets.shape).mean(dim=1)


def few_windows(decoder: Decoder, windows: int, length: int) -> Iterator[slice]:
    """Slices over windows of which the logits fit into memory."""
    size = max(1, LOGIT_BYTES // (4 * length * decoder.facts.vocab_size))
    for start in range(0, windows, size):
        yield slice(start, min(start + size, windows))


def loss_gradients(decoder: Decoder, hidden: Tensor, ids: Tensor) -> Tensor:
    """[windows, length, hidden_size]: of every window's loss, for the last hidden states."""
    found = []
    for part in few_windows(decoder, *ids.shape):
        leaf = hidden[part].detach().requires_grad_()
        with torch.enable_grad():
            loss = window_losses(decoder, leaf, ids[part]).sum()
        found.append(torch.autograd.grad(loss, leaf)[0])
    return torch.cat(found)


@dataclass
class LayerGradients:
    """Sums over windows of a layer's weight gradients and of their squares, by projection.

    Each [d_out, d_in] float32, on the layer's device.
    """

    total: dict[str, Tensor] = field(default_factory=dict)
    squared: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, inputs: Tensor, outward: Tensor) -> None:
        """inputs: [windows, length, d_in]; outward: [windows, length, d_out], of the outputs."""
        if name not in self.total:
            shape = outward.shape[-1], inputs.shape[-1]
            self.total[name] = torch.zeros(shape, device=inputs.device)
            self.squared[name] = torch.zeros(shape, device=inputs.device)
        for x, g in zip(inputs.float(), outward.float(), strict=True):
            gradient = g.T @ x
            self.total[name] += gradient
            self.squared[name].addcmul_(gradient, gradient)

    def saliency(self, facts: Facts, tensors: Mapping[str, Tensor]) -> dict[Part, Saliency]:
        """By part; `tensors` are the layer's, names relative to it."""
        family, rows = facts.family, rows_of(dense_layout(facts)[0])
        found: dict[Part, Saliency] = {}
        for name, parts in family.inputs.items():
            sums = self._sums(name, tensors[f"{name}.weight"], dim=1)
            split = [one.split([rows[part] for part in parts]) for one in sums]
            found.update(zip(parts, map(Saliency, *split), strict=True))
        for name, part in ((family.output, OUTPUT), (family.down, DOWN)):
            found[part] = Saliency(*self._sums(name, tensors[f"{name}.weight"], dim=0))
        return found

    def _sums(self, name: str, weight: Tensor, dim: int) -> list[Tensor]:
        """Signed, absolute, squared and mixed, over one dimension."""
        weight = weight.float()
        first = weight * self.total[name]
        second = weight.square().mul_(self.squared[name])
        mixed = (first - second / 2).abs_()
        return [
            one.sum(dim=dim, dtype=torch.float64) for one in (first, first.abs(), second, mixed)
        ]


def layer_backward(
    decoder: Decoder,
    layer: PerLayerDecoderLayer,
    hidden: Tensor,
    outward: Tensor,
    gradients: LayerGradients,
) -> tuple[Tensor, Tensor]:
    """(gradients for the hidden states before the layer, hidden states behind it) of some windows.

    hidden: before the layer; outward: gradients for what is behind it. What the layer's weights get
    is added to `gradients`.
    """
    leaf = hidden.detach().requires_grad_()
    with torch.enable_grad(), _watched(decoder.facts, layer, gradients):
        behind = decoder.feed(layer, decoder.attend(layer, leaf))
    return torch.autograd.grad(behind, leaf, outward)[0], behind.detach()


@contextmanager
def _watched(
    facts: Facts, layer: PerLayerDecoderLayer, gradients: LayerGradients
) -> Iterator[None]:
    """While a layer runs, its projections are told what to do with gradients that come back."""
    family = facts.family

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def note(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            inputs = args[0].detach()
            out.register_hook(lambda outward: gradients.add(name, inputs, outward))

        return note

    projections = (*family.attention_projections, *family.mlp_projections)
    handles = [layer.get_submodule(name).register_forward_hook(watch(name)) for name in projections]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
