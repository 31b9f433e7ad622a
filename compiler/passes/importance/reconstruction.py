# SPDX-License-Identifier: Apache-2.0
"""The output's squared error when a unit alone goes and nothing makes up for it."""

from __future__ import annotations

import torch
from torch import Tensor

from prunec.compiler.passes.importance.statistics import Part
from prunec.compiler.passes.importance.sublayer import Sublayer, blocks


def score(sublayer: Sublayer, part: Part, units: int) -> Tensor | None:
    """tr(W_Pᵀ H_PP W_P), with H the Gram matrix and P a unit's inputs of the last projection."""
    if part != sublayer.last:
        return None
    weight, gram = sublayer.weights[part], sublayer.gram.double()
    if units == len(weight):
        energy = weight.float().square().sum(dim=1, dtype=torch.float64)
        return energy * gram.diagonal()
    parts = weight.double().reshape(units, -1, weight.shape[1])
    return (blocks(gram, units) @ parts).mul_(parts).sum(dim=(1, 2)).clamp_(min=0)
