# SPDX-License-Identifier: Apache-2.0
"""What the metrics know of a layer: sums over calibration tokens that can be mixed.

Every sum is additive over groups of windows, so that another mixture of the same groups needs no
new pass over the text. Absolute values of gradients are taken within a group: with one group they
are those of the published metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields

from torch import Tensor

from prunec.compiler.model.families import Rows

#: What a projection's score is of: rows of what computes queries, keys, values, gate and up,
#: columns of the output and down projections.
Part = Rows | str
OUTPUT, DOWN = "output", "down"


@dataclass(frozen=True)
class Saliency:
    """Of one part's vectors (rows, or columns of a last projection), sums over their entries.

    With w a weight, g its gradient summed over a group's windows, F the sum of the squares of every
    window's own gradient. Each [vectors], float64.

    signed:   Σ w g
    absolute: Σ |w g|
    squared:  Σ w² F
    mixed:    Σ |w g − ½ w² F|
    """

    signed: Tensor
    absolute: Tensor
    squared: Tensor
    mixed: Tensor


@dataclass(frozen=True)
class SublayerStatistics:
    """Sums over a group's tokens for one sublayer of the dense model.

    gram:     [d_in, d_in] Σ x xᵀ of inputs of its last projection, float64 where it is summed and
        float32 where it is stored; None if not collected
    total:    [d_in] float64, Σ x of the same inputs
    squared:  [d_in] float64, Σ x² of the same inputs (the diagonal of `gram`)
    entering: [hidden_size] float64, Σ h² of inputs of its first projections, behind the norm
    saliency: by part; empty if gradients were not collected
    """

    gram: Tensor | None
    total: Tensor
    squared: Tensor
    entering: Tensor
    saliency: Mapping[Part, Saliency] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerStatistics:
    """A layer's statistics over a group of `tokens` tokens in `windows` windows.

    influence: Σ over tokens of 1 − cos(hidden state before the layer, behind it)
    angular:   Σ over tokens of the angle between the two, over π
    """

    tokens: int
    windows: int
    influence: float
    angular: float
    attention: SublayerStatistics
    mlp: SublayerStatistics


def mixed(groups: Sequence[LayerStatistics], weights: Sequence[float]) -> LayerStatistics:
    """Statistics of a layer as if groups of windows were drawn from with these weights.

    Every sum becomes the weighted mean of the groups' sums per token, times all tokens of those
    groups whose weight is above 0. Float64.
    """
    pairs = [(group, weight) for group, weight in zip(groups, weights, strict=True) if weight > 0]
    tokens = sum(group.tokens for group, _ in pairs)
    whole = sum(weight for _, weight in pairs)
    shares = [weight / whole * tokens / group.tokens for group, weight in pairs]
    parts = [group for group, _ in pairs]

    def number(of: Callable[[LayerStatistics], float]) -> float:
        return sum(share * of(part) for share, part in zip(shares, parts, strict=True))

    return LayerStatistics(
        tokens,
        sum(part.windows for part in parts),
        number(lambda part: part.influence),
        number(lambda part: part.angular),
        _mixed_sublayer([part.attention for part in parts], shares),
        _mixed_sublayer([part.mlp for part in parts], shares),
    )


def _mixed_sublayer(
    parts: Sequence[SublayerStatistics], shares: Sequence[float]
) -> SublayerStatistics:
    grams = [part.gram for part in parts if part.gram is not None]
    saliency = {
        name: Saliency(
            **{
                field.name: _weighted(
                    [getattr(part.saliency[name], field.name) for part in parts], shares
                )
                for field in fields(Saliency)
            }
        )
        for name in parts[0].saliency
    }
    return SublayerStatistics(
        _weighted(grams, shares) if len(grams) == len(parts) else None,
        _weighted([part.total for part in parts], shares),
        _weighted([part.squared for part in parts], shares),
        _weighted([part.entering for part in parts], shares),
        saliency,
    )


def _weighted(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    result = tensors[0].double() * shares[0]
    for tensor, share in zip(tensors[1:], shares[1:], strict=True):
        result.add_(tensor, alpha=share)
    return result
