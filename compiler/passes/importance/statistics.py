# SPDX-License-Identifier: Apache-2.0
"""What the metrics know of a layer: sums over calibration tokens that can be mixed.

Every sum is additive over groups of windows, so that another mixture of the same groups needs no
new pass over the text. Absolute values of gradients are taken within a group: with one group they
are those of the published metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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

    gram:     [d_in, d_in] float64, Σ x xᵀ of inputs of its last projection; None if not collected
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
