# SPDX-License-Identifier: Apache-2.0
"""Exact least-squares weights for every nested subset of inputs, from one factorisation.

A sublayer ends in a linear map `X @ W`. When only the inputs S are kept, the best weights are
`H[S, S]^-1 G[S]` with the Gram matrix `H = X^T X` and `G = X^T Y` for a target output Y. For
nested subsets, `S_k = order[:k]`, one Cholesky factorisation serves all k: with `H[order, order]
= L L^T` and `B = L^-1 G[order]`, the weights are the solution of `L[:k, :k]^T W_k = B[:k]` and
the squared error grows over that of all inputs by `sum of B[k:]**2`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.scratch import FileTensor
from prunec.compiler.model.tensor_file import Sliced

#: Rows of a large matrix that are worked on together, where all of them would need a second one.
_BLOCK = 1024

#: A channel counts towards a ridge with at most so many times the median channel's energy.
MASSIVE = 10.0


@dataclass
class GramStatistics:
    """Sums over calibration tokens for one linear map, float64.

    own:     [d_in, d_in]  X̂ᵀX̂, of inputs as the pruned model sees them; its lower triangle counts
    missing: [d_in, d_out] X̂ᵀD, where D is what the stream behind the sublayer lacks: the dense
             model's less the pruned one's, were this sublayer still dense; None where nothing
             is fitted to it
    """

    own: Tensor
    missing: Tensor | None

    @classmethod
    def empty(
        cls, d_in: int, d_out: int, *, with_missing: bool, device: torch.device | str = "cpu"
    ) -> GramStatistics:
        def zeros(columns: int) -> Tensor:
            return torch.zeros(d_in, columns, dtype=torch.float64, device=device)

        return cls(zeros(d_in), zeros(d_out) if with_missing else None)

    def add(self, inputs: Tensor, missing: Tensor | None) -> None:
        """Add a batch, [tokens, d_in] and [tokens, d_out]: float32 products, float64 sums."""
        inputs = inputs.float()
        missing = None if missing is None else missing.float()
        for rows in row_blocks(len(self.own)):
            self.own[rows, : rows.stop] += inputs[:, rows].T @ inputs[:, : rows.stop]
            if self.missing is not None and missing is not None:
                self.missing[rows] += inputs[:, rows].T @ missing


def row_blocks(size: int) -> Iterator[slice]:
    """Slices over the rows of a large matrix, so many as are worked on together."""
    for start in range(0, size, _BLOCK):
        yield slice(start, min(start + _BLOCK, size))


@dataclass(frozen=True)
class NormalEquations:
    """gram: [d_in, d_in], symmetric positive definite, in memory or in a file; diagonal: [d_in],
    its own; target: [d_in, d_out]; dense: [d_in, d_out], the map as it is before any input goes, or
    None where it is the solution; float64."""

    gram: Tensor | FileTensor
    diagonal: Tensor
    target: Tensor
    dense: Tensor | None = None

    @classmethod
    def of(cls, gram: Tensor, target: Tensor, dense: Tensor | None = None) -> NormalEquations:
        return cls(gram, gram.diagonal().clone(), target, dense)

    def in_file(self, scratch: Path) -> NormalEquations:
        """The same with the Gram matrix in a file: for its inverse there is then more room."""
        gram = FileTensor(self.gram.shape, torch.float64, scratch)
        for rows in row_blocks(len(gram)):
            gram[rows] = self.gram[rows]
        return replace(self, gram=gram)

    def factor(self) -> Tensor:
        """The lower Cholesky factor of the Gram matrix. ModelError, see `cholesky`."""
        return cholesky(self.gram[:].to(self.target.device))

    def factor_among(self, inputs: Tensor) -> Tensor:
        """The lower Cholesky factor for some inputs, in their order. ModelError, see `cholesky`."""
        if isinstance(self.gram, Tensor):
            return cholesky(self.gram[inputs][:, inputs])
        place = torch.full((len(self.gram),), -1)
        place[inputs.cpu()] = torch.arange(len(inputs))
        among = self.target.new_empty(len(inputs), len(inputs))
        for rows in row_blocks(len(self.gram)):
            wanted = (place[rows] >= 0).nonzero()[:, 0]
            block = self.gram[rows].to(among.device)[wanted.to(among.device)]
            among[place[rows][wanted].to(among.device)] = block[:, inputs]
        return cholesky(among)


def normal_equations(
    statistics: GramStatistics, weight: Tensor, *, damping: float, dense_target: float
) -> NormalEquations:
    """The damped problem whose solution on all inputs stays close to `weight` [d_in, d_out].

    The output to reproduce is `X̂W + r D` with r = `dense_target` and D as in `GramStatistics`: at
    0 the pruned path is taken for right, at 1 the sublayer tries to lead the whole stream back to
    the dense model's, whatever the layers before it have lost. The ridge (`ridge_of`) pulls
    towards `weight`, so that dead inputs and rank-deficient Grams are harmless. These matrices are
    large: the statistics' own becomes the problem's.

    Source: Týr-the-Pruner (arXiv 2503.09657) for the symmetric problem at r = 0; the stream as
    target ours.
    """
    own = statistics.own
    for rows in row_blocks(len(own)):
        own[: rows.start, rows] = own[rows, : rows.start].T
        own[rows, rows] = (own[rows, rows] + own[rows, rows].T).div_(2)
    sums = [own] if statistics.missing is None else [own, statistics.missing]
    if not all(matrix.sum().isfinite() for matrix in sums):
        raise ModelError("a NaN or an infinity appeared in the activations of the calibration text")
    weight = weight.to(torch.float64)
    ridge = ridge_of(own.diagonal(), damping)
    target = (own @ weight).addcmul_(weight, ridge)
    if statistics.missing is not None:
        target.add_(statistics.missing, alpha=dense_target)
    own.diagonal().add_(ridge)
    return NormalEquations.of(own, target, weight)


def ridge_of(diagonal: Tensor, damping: float) -> Tensor:
    """What is added to the diagonal [d_in] of a Gram matrix, in its own unit: λ = `damping` times
    the mean over channels j of min(H_jj, MASSIVE · median of the H_jj above 0).

    Published code takes the plain mean (percdamp of GPTQ, SparseGPT and Týr-the-Pruner). In models
    with massive activations (arXiv 2402.17762) one or two channels are most of that, and the ridge
    of all others is then as large as they are. Bounding each channel's part is ours.
    """
    alive = diagonal[diagonal > 0]
    if not len(alive):
        # Inputs that are all zero leave the weights undetermined: any ridge then keeps them.
        return torch.full_like(diagonal.sum(), damping)
    return damping * diagonal.clamp(max=MASSIVE * alive.median()).mean()


def cholesky(gram: Tensor) -> Tensor:
    """The lower factor of a Gram matrix; ModelError if rounding leaves it without one."""
    result = torch.linalg.cholesky_ex(gram)
    factor: Tensor = result.L
    if result.info:
        raise ModelError(
            "the activations of the calibration text are too nearly collinear to be told apart",
            hint="raise method.damping",
        )
    return factor


def invert(factor: Tensor) -> Tensor:
    """The inverse of the matrix with this lower Cholesky factor, in the factor's own memory.

    As LAPACK's potri, `A⁻¹ = L⁻ᵀ L⁻¹`, of which it does the halves block by block: all but the
    diagonal blocks is matrix products, which use all cores of any machine.
    """
    blocks = list(row_blocks(len(factor)))
    for rows in blocks:  # L⁻¹, from top to bottom
        one = torch.eye(rows.stop - rows.start, dtype=factor.dtype, device=factor.device)
        corner = torch.linalg.solve_triangular(factor[rows, rows], one, upper=False)
        for columns in blocks[: rows.start // _BLOCK]:
            above = slice(columns.start, rows.start)
            factor[rows, columns] = corner @ -(factor[rows, above] @ factor[above, columns])
        factor[rows, rows] = corner
    for rows in blocks:  # a row of the product needs no row above it
        factor[rows, : rows.stop] = factor[rows.start :, rows].T @ factor[rows.start :, : rows.stop]
        factor[: rows.start, rows] = factor[rows, : rows.start].T
    return factor


@dataclass(frozen=True)
class NestedSolution:
    """Least-squares weights for every prefix of `order` (inputs, most important first).

    order: [d_in] int64, or fewer where the others never stay; factor: [d_in, d_in] lower
    triangular; projected: [d_in, d_out]. The latter two are read as they are needed.
    """

    order: Tensor
    factor: Sliced
    projected: Sliced

    @classmethod
    def solve(cls, problem: NormalEquations, order: Tensor) -> NestedSolution:
        """Factorise once for all sizes. `order`: a permutation of the inputs, or its beginning."""
        factor = problem.factor_among(order)
        projected = torch.linalg.solve_triangular(factor, problem.target[order], upper=False)
        return cls(order, factor, projected)

    def weight(self, size: int) -> tuple[Tensor, Tensor]:
        """(inputs [size], weights [size, d_out]) for the `size` most important inputs.

        The inputs come in ascending order and the weights' rows with them.
        """
        weights = self.projected[:size].to(self.order.device, copy=True)
        # Back substitution: rows that are solved for leave the equations of those above them.
        for rows in reversed([*row_blocks(size)]):
            factor = self.factor[rows].to(weights.device)
            square, above = factor[:, rows], factor[:, : rows.start]
            weights[rows] = torch.linalg.solve_triangular(square.T, weights[rows], upper=True)
            weights[: rows.start].addmm_(above.T, weights[rows], alpha=-1)
        inputs, places = self.order[:size].sort()
        return inputs, weights[places]

    def excess_errors(self) -> Tensor:
        """[d_in + 1]: for every size, the squared error beyond that of keeping all inputs."""
        blocks = row_blocks(len(self.order))
        errors = torch.cat([self.projected[rows].square().sum(dim=1) for rows in blocks])
        tail = errors.flip(0).cumsum(0).flip(0)
        return torch.cat([tail, tail.new_zeros(1)])
