# SPDX-License-Identifier: Apache-2.0
"""One layer at once: score, choose, slice, and refit on what the dense model sends."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import LayerSelection, LayerSpec
from prunec.compiler.model.surgery import head_rows, slice_layer
from prunec.compiler.passes.importance.scoring import Scoring, score_layer
from prunec.compiler.passes.importance.selection import select_units
from prunec.compiler.passes.importance.statistics import LayerStatistics, SublayerStatistics
from prunec.compiler.passes.importance.sublayer import damped
from prunec.compiler.passes.least_squares import cholesky
from prunec.compiler.passes.nested import CutLayer


def prune_layer(
    facts: Facts,
    tensors: Mapping[str, Tensor],
    statistics: LayerStatistics | None,
    scoring: Scoring,
    spec: LayerSpec,
    *,
    refit: bool,
    damping: float,
) -> CutLayer:
    """A layer at a spec. `tensors` are those of the dense layer, names relative to it.

    refit: fit the last projections' weights to make up for what goes, on the Gram matrices of the
        dense model; ModelError where none was collected
    """
    selection = select_units(facts, score_layer(facts, tensors, statistics, scoring), spec)
    if not refit:
        return CutLayer(selection, slice_layer(facts, tensors, selection))
    if statistics is None:
        raise ModelError("weights cannot be refitted: no statistics of calibration text are there")
    return refitted(facts, tensors, statistics, selection, damping)


def refitted(
    facts: Facts,
    tensors: Mapping[str, Tensor],
    statistics: LayerStatistics,
    selection: LayerSelection,
    damping: float,
) -> CutLayer:
    """A layer with some of its units, its last projections fitted to give what the dense layer's
    give: damped least squares as `normal_equations` poses it."""
    family, sliced = facts.family, slice_layer(facts, tensors, selection)
    neurons = torch.tensor(selection.neurons, dtype=torch.long)
    for last, kept, known in (
        (family.output, head_rows(selection.query_heads, facts.head_dim), statistics.attention),
        (family.down, neurons, statistics.mlp),
    ):
        name = f"{last}.weight"
        if name in sliced and sliced[name].shape != tensors[name].shape:
            sliced[name] = _fitted(tensors[name], known, kept, damping)
    return CutLayer(selection, sliced)


def _fitted(weight: Tensor, statistics: SublayerStatistics, kept: Tensor, damping: float) -> Tensor:
    """[d_out, kept]: `weight` [d_out, d_in] on some inputs; (H_SS)⁻¹ H_S: W with H damped."""
    if statistics.gram is None:
        raise ModelError("weights cannot be refitted: no Gram matrix was collected")
    kept = kept.to(weight.device)
    gram = damped(statistics.gram, damping)[kept]
    fitted = torch.cholesky_solve(gram @ weight.T.double(), cholesky(gram[:, kept]))
    return fitted.T.to(weight.dtype).contiguous()
