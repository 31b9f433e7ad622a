# SPDX-License-Identifier: Apache-2.0
"""How much of the output varies with a unit: what its mean could not stand in for.

Source: FLAP (arXiv 2312.11983).
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunec.compiler.passes.importance.statistics import Part
from prunec.compiler.passes.importance.sublayer import Sublayer, folded


def score(sublayer: Sublayer, part: Part, units: int) -> Tensor | None:
    """Σ Var(x_j) ‖W_j‖² over a unit's inputs j of the last projection."""
    if part != sublayer.last:
        return None
    statistics, tokens = sublayer.known, sublayer.tokens
    mean = statistics.total.double() / tokens
    variance = (statistics.squared.double() / tokens - mean.square()).clamp_(min=0)
    energy = sublayer.weights[part].float().square().sum(dim=1, dtype=torch.float64)
    return folded(variance * energy, units)
