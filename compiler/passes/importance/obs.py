# SPDX-License-Identifier: Apache-2.0
"""What the output's squared error grows by when a unit goes and all others make up for it.

Source: optimal brain surgeon; blocks as in ZipLM (arXiv 2302.04089).
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunec.compiler.passes.importance.statistics import Part
from prunec.compiler.passes.importance.sublayer import Sublayer, blocks
from prunec.compiler.passes.least_squares import cholesky


def score(sublayer: Sublayer, part: Part, units: int) -> Tensor | None:
    """tr(W_Pᵀ (A_PP)⁻¹ W_P), with A the inverse of the damped Gram matrix and P a unit's inputs of
    the last projection, all of them at once."""
    if part != sublayer.last:
        return None
    weight, inverse = sublayer.weights[part], sublayer.inverse
    if units == len(weight):
        energy = weight.float().square().sum(dim=1, dtype=torch.float64)
        return energy / inverse.diagonal()
    parts = weight.double().reshape(units, -1, weight.shape[1])
    costs = [
        torch.linalg.solve_triangular(cholesky(block), rows, upper=False).square().sum()
        for block, rows in zip(blocks(inverse, units), parts, strict=True)
    ]
    return torch.stack(costs)
