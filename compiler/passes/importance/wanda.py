# SPDX-License-Identifier: Apache-2.0
"""Weights times the norms of what they are multiplied with.

Source: Wanda (arXiv 2306.11695), summed over structures as its structured variants do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunec.compiler.passes.importance.statistics import Part
from prunec.compiler.passes.importance.sublayer import Sublayer, folded


def score(sublayer: Sublayer, part: Part, units: int) -> Tensor:
    """Σ |w_ij| ‖x_j‖₂ over a unit's weights, with j the weight's input."""
    weight, statistics = sublayer.weights[part].float().abs(), sublayer.known
    if part == sublayer.last:  # a vector is all weights of one input
        vectors = weight.sum(dim=1, dtype=torch.float64) * statistics.squared.double().sqrt()
    else:
        vectors = (weight @ statistics.entering.sqrt().float()).double()
    return folded(vectors, units)
