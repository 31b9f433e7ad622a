# SPDX-License-Identifier: Apache-2.0
"""A model between layouts, every sublayer at a mixture of sizes, and what each size is worth to it.

A sublayer ends in a linear map, so a mixture of what its sizes put out, with weights q, is the
output of one mixed map: `sum_e q_e X W_e = X (sum_e q_e W_e)`, with W_e zero where its size has no
input. And what a loss gains or loses by any of them is an inner product with one gradient,
`dL/dq_e = <dL/dW, W_e>`: a single backward pass tells it for all sizes of all sublayers.

The weights are not the probabilities of the sizes: errors partly cancel in a mean, so that it
would be better than any size in it, and would say little of what becomes of it when one is chosen.
`blend` finds those weights at which a mixture of least-squares solutions is exactly as bad as its
sizes are on average.

Source: mixtures of operators as in DARTS, and DA2S (arXiv 2007.03154); `blend` ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.layout import LayerSpec
from prunec.compiler.model.modeling.modeling_prunec import PerLayerDecoderLayer
from prunec.compiler.model.surgery import head_rows
from prunec.compiler.passes.nested import CutLayer, NestedLayer
from prunec.compiler.search.divergence import Teacher, divergence

Numbers = NDArray[np.float64]

#: What a forward and a backward pass cost, in forward passes. Only activations and the two mixed
#: maps of a layer have gradients, so that the backward pass costs less than the customary two.
PASSES = 3

#: Tokens whose activations are alive at once.
GRADIENT_TOKENS = 2048


@dataclass(frozen=True)
class Site:
    """Sublayers of one kind that have the same size: those of one layer, or of all.

    sizes: layers of which the other sublayer is absent, the smallest first
    costs: [sizes] of all these sublayers together
    """

    layers: range
    attention: bool
    sizes: tuple[LayerSpec, ...]
    costs: Numbers


class Relaxation:
    """Slopes of the divergence from the dense model in the probabilities of all sizes.

    `token_forwards` counts as an `Evaluator` does, PASSES for every token.
    """

    def __init__(
        self,
        decoder: Decoder,
        supernet: Sequence[NestedLayer],
        ids: Tensor,
        teacher: Teacher,
        sites: Sequence[Site],
    ) -> None:
        """ids: [windows, length]; sites: together, every sublayer once."""
        self.decoder = decoder
        self.supernet = supernet
        self.ids = ids
        self.teacher = teacher
        self.sites = sites
        self.token_forwards = 0

    def slopes(self, probabilities: Numbers, windows: Sequence[int]) -> tuple[float, Numbers]:
        """(mean divergence on some windows, its derivatives in the probabilities).

        Both: [sites, most sizes of a site]; what is beyond a site's sizes is not read, and zero.
        """
        rows = [row[: len(site.sizes)] for row, site in zip(probabilities, self.sites, strict=True)]
        for row, mixed in zip(rows, self._mixed, strict=True):
            for sublayer in mixed.values():
                sublayer.mix(blend(row).tolist())
        length = self.ids.shape[1]
        count, size = len(windows), max(1, GRADIENT_TOKENS // length)
        with torch.enable_grad():
            total = sum(self._pass(some) for some in torch.tensor(windows).split(size))
        self.token_forwards += PASSES * count * length
        slopes = np.zeros_like(probabilities)
        for row, out, mixed in zip(rows, slopes, self._mixed, strict=True):
            of_weights = np.sum([sublayer.slopes() for sublayer in mixed.values()], axis=0)
            out[: len(row)] = through_blend(of_weights / count, row)
        return total / count, slopes

    def release(self) -> None:
        """Let go of the weights; they are cut again if they are needed after all."""
        self.__dict__.pop("_mixed", None)

    def _pass(self, windows: Tensor) -> float:
        """Forward and backward on some windows: sums of divergences, gradients in the weights."""
        hidden = self.decoder.embed(self.ids[windows])
        for attention, mlp in self._by_layer:
            hidden = self.decoder.attend(attention.layer, hidden)
            hidden = self.decoder.feed(mlp.layer, hidden)
        # Few logits at a time: their gradients are gathered at the last hidden states.
        last = hidden.detach().requires_grad_()
        total = 0.0
        for few in self.decoder.few(*last.shape[:2]):
            teacher = self.teacher[windows[few]]
            loss = divergence(teacher, self.decoder.logits(last[few])).sum()
            loss.backward()
            total += loss.item()
        hidden.backward(last.grad)
        return total

    @cached_property
    def _mixed(self) -> list[dict[int, _Mixed]]:
        """The sublayers of every site, by layer."""
        return [{layer: self._mixture(site, layer) for layer in site.layers} for site in self.sites]

    @property
    def _by_layer(self) -> list[tuple[_Mixed, _Mixed]]:
        """(attention, MLP) of every layer."""
        attention: dict[int, _Mixed] = {}
        mlp: dict[int, _Mixed] = {}
        for site, mixed in zip(self.sites, self._mixed, strict=True):
            (attention if site.attention else mlp).update(mixed)
        return [(attention[layer], mlp[layer]) for layer in range(self.decoder.facts.layers)]

    def _mixture(self, site: Site, index: int) -> _Mixed:
        facts, nested = self.decoder.facts, self.supernet[index]
        tensors = self.decoder.layer_tensors(index)
        cuts = [
            nested.attention.cut(facts, tensors, (spec.query_heads, spec.kv_heads))
            if site.attention
            else nested.mlp.cut(facts, tensors, spec.ffn)
            for spec in site.sizes
        ]
        units = [_inputs(cut, facts.head_dim) for cut in cuts]
        # Sizes are nested: the largest has the inputs of all others.
        layer = self.decoder.layer(index, site.sizes[-1], cuts[-1].tensors)
        name = facts.family.output if site.attention else facts.family.down
        last = layer.get_submodule(name) if len(units[-1]) else None
        levels = []
        for cut, inputs in zip(cuts, units, strict=True):
            columns = torch.searchsorted(units[-1], inputs).to(self.decoder.device)
            weight = cut.tensors.get(f"{name}.weight")
            levels.append(None if weight is None else (columns, weight))
        return _Mixed(layer, last, levels)


class _Mixed:
    """A sublayer at its largest size, whose last linear map is a mixture of those of all sizes.

    levels: for every size (its columns among those of the largest, [d_out, columns] weights), None
        where the sublayer is absent
    """

    def __init__(
        self,
        layer: PerLayerDecoderLayer,
        last: nn.Module | None,
        levels: Sequence[tuple[Tensor, Tensor] | None],
    ) -> None:
        self.layer = layer
        self.levels = levels
        self._last = last if isinstance(last, nn.Linear) else None
        self._bias = (
            self._last.bias.detach() if self._last and self._last.bias is not None else None
        )

    def mix(self, weights: Sequence[float]) -> None:
        """Mix in float32 at least: small weights count too."""
        if self._last is None:
            return
        old = self._last.weight
        wide = torch.zeros(old.shape, dtype=_wide(old), device=old.device)
        for level, share in zip(self.levels, weights, strict=True):
            if level is not None:
                columns, weight = level
                wide.index_add_(1, columns, weight.to(wide.dtype), alpha=share)
        self._last.weight = nn.Parameter(wide.to(old.dtype))
        if self._bias is not None:  # goes where the sublayer goes
            shares = zip(weights, self.levels, strict=True)
            present = sum(share for share, level in shares if level is not None)
            self._last.bias = nn.Parameter(self._bias * present)

    def slopes(self) -> Numbers:
        """[sizes]: derivatives in the weights of whatever was run backward."""
        slopes = np.zeros(len(self.levels))
        if self._last is None:
            return slopes
        gradient = self._last.weight.grad
        assert gradient is not None
        gradient = gradient.to(_wide(gradient))
        of_bias = 0.0
        if self._bias is not None:
            assert self._last.bias.grad is not None
            of_bias = float((self._last.bias.grad * self._bias).sum())
        for number, level in enumerate(self.levels):
            if level is not None:
                columns, weight = level
                slopes[number] = float((gradient[:, columns] * weight).sum()) + of_bias
        return slopes


def blend(probabilities: Numbers) -> Numbers:
    """[sizes] weights of a mixture of nested least-squares solutions, the smallest first.

    Its squared error, beyond that of the largest, is the mean of theirs: the steps from one
    solution to the next are orthogonal in the metric of the inputs. Who draws a size misses step k
    whenever it is below k; a mixture misses a share m of the step, and thereby m² of its energy. So
    m is the root of the probability to be below. One size alone is itself.
    """
    steps: Numbers = 1 - np.sqrt(_below(probabilities))  # share of the step up to each size
    return -np.diff(steps, append=0.0)


def through_blend(slopes: Numbers, probabilities: Numbers) -> Numbers:
    """[sizes]: derivatives in the probabilities, given those in the weights of `blend`."""
    of_steps = np.diff(slopes, prepend=0.0)
    # A step that is had for certain has a slope of zero itself, but for rounding.
    of_below = -of_steps / (2 * np.sqrt(np.maximum(_below(probabilities), 1e-12)))
    of_below[0] = 0.0
    # To be of a size is to be below all larger ones.
    return np.append(of_below[:0:-1].cumsum()[::-1], 0.0)


def _below(probabilities: Numbers) -> Numbers:
    """[sizes]: the probability of a smaller one."""
    return np.clip(np.append(0.0, probabilities[:-1].cumsum()), 0.0, 1.0)


def _inputs(cut: CutLayer, head_dim: int) -> Tensor:
    """Columns of the sublayer's last linear map as the dense model numbers them, ascending."""
    if cut.selection.neurons:
        return torch.tensor(cut.selection.neurons)
    return head_rows(cut.selection.query_heads, head_dim)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
