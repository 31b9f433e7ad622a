# SPDX-License-Identifier: Apache-2.0
"""Norms of a unit's weights; no text is looked at."""

from __future__ import annotations

import torch
from torch import Tensor

from prunec.compiler.passes.importance.statistics import Part
from prunec.compiler.passes.importance.sublayer import Sublayer, folded


def l1(sublayer: Sublayer, part: Part, units: int) -> Tensor:
    """Σ |w|."""
    weight = sublayer.weights[part].float()
    return folded(weight.abs().sum(dim=1, dtype=torch.float64), units)


def l2(sublayer: Sublayer, part: Part, units: int) -> Tensor:
    """Σ w²."""
    weight = sublayer.weights[part].float()
    return folded(weight.square().sum(dim=1, dtype=torch.float64), units)
