# SPDX-License-Identifier: Apache-2.0
"""What the loss would change by, from its Taylor series in a unit's weights.

Element-wise the absolute values of all weights' terms are summed; vector-wise the terms of a row or
column are summed first. The second order takes the Hessian for diagonal and estimates it by squared
gradients.

Source: LLM-Pruner (arXiv 2305.11627).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from prunec.compiler.model.errors import ModelError
from prunec.compiler.passes.importance.statistics import Part, Saliency
from prunec.compiler.passes.importance.sublayer import Metric, Sublayer, folded


def _metric(of_vectors: Callable[[Saliency], Tensor]) -> Metric:
    def score(sublayer: Sublayer, part: Part, units: int) -> Tensor:
        saliency = sublayer.known.saliency.get(part)
        if saliency is None:
            raise ModelError("no gradients were collected of the calibration text")
        return folded(of_vectors(saliency).double(), units)

    return score


FIRST = _metric(lambda saliency: saliency.absolute)
SECOND = _metric(lambda saliency: saliency.squared)
MIXED = _metric(lambda saliency: saliency.mixed)
VECTOR = _metric(lambda saliency: saliency.signed.abs())
