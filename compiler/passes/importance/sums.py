# SPDX-License-Identifier: Apache-2.0
"""Sums over tokens while a dense layer runs: of its projections' inputs, and of how far it turns
the hidden states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.facts import Facts
from prunec.compiler.model.modeling.modeling_prunec import PerLayerDecoderLayer
from prunec.compiler.passes.importance.statistics import (
    DOWN,
    LayerStatistics,
    Part,
    Saliency,
    SublayerStatistics,
)


@dataclass
class SublayerSums:
    """As `SublayerStatistics`, float64 and on the model's device."""

    gram: Tensor | None
    total: Tensor
    squared: Tensor
    entering: Tensor

    @classmethod
    def empty(cls, d_in: int, hidden_size: int, device: torch.device, gram: bool) -> SublayerSums:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        return cls(
            zeros(d_in, d_in) if gram else None, zeros(d_in), zeros(d_in), zeros(hidden_size)
        )

    def enter(self, inputs: Tensor) -> None:
        """Inputs of the first projections, [..., hidden_size]."""
        inputs = inputs.detach().flatten(0, -2).float()
        self.entering += inputs.square().sum(dim=0, dtype=torch.float64)

    def leave(self, inputs: Tensor) -> None:
        """Inputs of the last projection, [..., d_in]."""
        inputs = inputs.detach().flatten(0, -2).float()
        self.total += inputs.sum(dim=0, dtype=torch.float64)
        self.squared += inputs.square().sum(dim=0, dtype=torch.float64)
        if self.gram is not None:
            self.gram += inputs.T @ inputs

    def statistics(self, saliency: Mapping[Part, Saliency]) -> SublayerStatistics:
        gram = None if self.gram is None else self.gram.float().cpu()
        vectors = (self.total.cpu(), self.squared.cpu(), self.entering.cpu())
        return SublayerStatistics(gram, *vectors, saliency)


@dataclass
class LayerSums:
    """As `LayerStatistics`, while tokens are still being added."""

    tokens: int
    windows: int
    influence: float
    angular: float
    attention: SublayerSums
    mlp: SublayerSums

    @classmethod
    def empty(cls, decoder: Decoder, *, with_gram: bool) -> LayerSums:
        facts, device = decoder.facts, decoder.device
        heads, hidden = facts.query_heads * facts.head_dim, facts.hidden_size
        return cls(
            0,
            0,
            0.0,
            0.0,
            SublayerSums.empty(heads, hidden, device, with_gram),
            SublayerSums.empty(facts.ffn, hidden, device, with_gram),
        )

    @contextmanager
    def listening(self, facts: Facts, layer: PerLayerDecoderLayer) -> Iterator[None]:
        """While a layer runs, what reaches its projections is added."""
        family = facts.family

        told = {
            next(iter(family.attention_inputs)): self.attention.enter,
            family.output: self.attention.leave,
            next(iter(family.mlp_inputs)): self.mlp.enter,
            family.down: self.mlp.leave,
        }
        handles = [
            layer.get_submodule(name).register_forward_pre_hook(
                lambda _, args, tell=tell: tell(args[0])
            )
            for name, tell in told.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def add_states(self, before: Tensor, behind: Tensor) -> None:
        """Hidden states before and behind the layer, [windows, length, hidden_size]."""
        cosine = nn.functional.cosine_similarity(before.double(), behind.double(), dim=-1)
        cosine = cosine.clamp_(-1, 1)
        self.tokens += cosine.numel()
        self.windows += len(before)
        self.influence += float((1 - cosine).sum())
        self.angular += float(cosine.arccos().sum()) / torch.pi

    def statistics(self, saliency: Mapping[Part, Saliency]) -> LayerStatistics:
        """On the CPU; the Gram matrices in float32."""
        mlp_parts = {"gate", "up", DOWN}
        saliency = {
            part: Saliency(*(one.cpu() for one in vars(found).values()))
            for part, found in saliency.items()
        }
        ours = {part: found for part, found in saliency.items() if part not in mlp_parts}
        theirs = {part: found for part, found in saliency.items() if part in mlp_parts}
        return LayerStatistics(
            self.tokens,
            self.windows,
            self.influence,
            self.angular,
            self.attention.statistics(ours),
            self.mlp.statistics(theirs),
        )
