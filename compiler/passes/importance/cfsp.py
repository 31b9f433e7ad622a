# SPDX-License-Identifier: Apache-2.0
"""CFSP's fine score: how large a share of every hidden channel's weights is a unit's, times how
active the unit is.

Source: CFSP (arXiv 2409.13199) and its code, for neurons and with both exponents 1; heads by
analogy ours.
"""

from __future__ import annotations

from torch import Tensor

from prunec.compiler.passes.importance.statistics import Part
from prunec.compiler.passes.importance.sublayer import Sublayer, folded


def score(sublayer: Sublayer, part: Part, units: int) -> Tensor:
    """mean_i (|w_ij| / Σ_j |w_ij|) a_j over hidden channels i, with a_j the norm of unit j's inputs
    of the last projection; the last projection's own weights are multiplied by their input's norm
    first."""
    weight, squared = sublayer.weights[part].float().abs(), sublayer.known.squared.double()
    if part == sublayer.last:
        weight = weight * squared.sqrt().float()[:, None]
    share = weight / weight.sum(dim=0).clamp_(min=1e-30)
    return folded(share.double().mean(dim=1), units) * folded(squared, units).sqrt()
