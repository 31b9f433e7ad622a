# SPDX-License-Identifier: Apache-2.0
"""One sublayer of a dense layer as the metrics see it: every part's vectors, and their statistics.

A part is what a unit has vectors in: rows of what computes queries, keys, values, gate and up,
columns of the output and down projections. A unit is a block of consecutive vectors of each part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.facts import Facts
from prunec.compiler.model.families import Rows
from prunec.compiler.model.layout import dense_layout, rows_of
from prunec.compiler.passes.importance.statistics import (
    DOWN,
    OUTPUT,
    LayerStatistics,
    Part,
    SublayerStatistics,
)
from prunec.compiler.passes.least_squares import cholesky, ridge_of


@dataclass(frozen=True)
class Sublayer:
    """weights: for every part its vectors, [vectors, entries], as the checkpoint has them
    last: the part that is columns of the sublayer's last projection
    statistics: over `tokens` calibration tokens; None where no metric looks at text
    damping: as of `ridge_of`
    """

    weights: Mapping[Part, Tensor]
    last: Part
    statistics: SublayerStatistics | None
    tokens: int
    damping: float

    @property
    def known(self) -> SublayerStatistics:
        """The statistics, which the caller knows to be there."""
        if self.statistics is None:
            raise ModelError("a metric that looks at text was given no statistics of any")
        return self.statistics

    @property
    def gram(self) -> Tensor:
        """[d_in, d_in] of the last projection's inputs."""
        gram = self.known.gram
        if gram is None:
            raise ModelError("no Gram matrix was collected of the calibration text")
        return gram

    @cached_property
    def inverse(self) -> Tensor:
        """[d_in, d_in] float64: the inverse of the damped Gram matrix."""
        return torch.cholesky_inverse(cholesky(damped(self.gram, self.damping)))


#: (sublayer, part, number of units) → [units] float64, at least 0, higher for what is worth more,
#: on any scale; None for parts that the metric says nothing of. Each reads what `NEEDS` says of it.
Metric = Callable[[Sublayer, Part, int], Tensor | None]


def sublayers(
    facts: Facts,
    tensors: Mapping[str, Tensor],
    statistics: LayerStatistics | None,
    damping: float,
) -> tuple[Sublayer, Sublayer]:
    """Attention and MLP of a dense layer; `tensors` are the layer's, names relative to it."""
    family, rows = facts.family, rows_of(dense_layout(facts)[0])

    def weights(
        inputs: Mapping[str, tuple[Rows, ...]], last: str, part: Part
    ) -> dict[Part, Tensor]:
        found: dict[Part, Tensor] = {}
        for name, parts in inputs.items():
            split = tensors[f"{name}.weight"].split([rows[p] for p in parts])
            found.update(zip(parts, split, strict=True))
        return found | {part: tensors[f"{last}.weight"].T}

    tokens = statistics.tokens if statistics else 0
    return (
        Sublayer(
            weights(family.attention_inputs, family.output, OUTPUT),
            OUTPUT,
            statistics.attention if statistics else None,
            tokens,
            damping,
        ),
        Sublayer(
            weights(family.mlp_inputs, family.down, DOWN),
            DOWN,
            statistics.mlp if statistics else None,
            tokens,
            damping,
        ),
    )


def damped(gram: Tensor, damping: float) -> Tensor:
    """A Gram matrix with the ridge of `ridge_of`; float64, a copy."""
    gram = gram.double()
    gram = (gram + gram.T).div_(2)
    if not torch.isfinite(gram).all():
        raise ModelError("a NaN or an infinity appeared in the activations of the calibration text")
    gram.diagonal().add_(ridge_of(gram.diagonal(), damping))
    return gram


def folded(vectors: Tensor, units: int) -> Tensor:
    """[vectors] → [units]: sums over each unit's vectors."""
    return vectors.reshape(units, -1).sum(dim=1)


def blocks(matrix: Tensor, units: int) -> Tensor:
    """[units, b, b]: the blocks of a [units b, units b] matrix on its diagonal."""
    size = len(matrix) // units
    each = torch.arange(units, device=matrix.device)
    return matrix.reshape(units, size, units, size)[each, :, each, :]
