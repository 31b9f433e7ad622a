# SPDX-License-Identifier: Apache-2.0
"""The order in which a sublayer loses its units: greedy optimal brain surgery, exactly updated.

Removing the inputs P from the least-squares problem costs `tr(W_Pᵀ (A_PP)⁻¹ W_P)`, where
`A = H⁻¹` and `W = A G`. After each removal both are brought up to date, so that every choice is
made on what is really left. Everything is float64 and independent of d_out where it can be.

Source: optimal brain surgeon as in ZipLM and SlimGPT; nested use and the d_out-free update ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunec.compiler.passes.least_squares import NormalEquations

PANEL = 64


def channel_order(problem: NormalEquations, panel: int = PANEL) -> Tensor:
    """[d_in]: single inputs (FFN neurons), most important first.

    The cost of input p is `M_pp / A_pp` with `M = W Wᵀ`. With the pivot's columns `a` of A and
    `m` of M, removing it takes `u uᵀ` from A and `u vᵀ + v uᵀ` from M, where `u = a / √a_p` and
    `v = m / √a_p − u m_p / (2 a_p)`. The updates are applied lazily, a panel of pivots at a time,
    so that the work is done by matrix products; only the diagonals are kept current.
    """
    inverse, weight = _inverse_and_weight(problem)
    moment = weight @ weight.T
    alive = torch.arange(len(inverse), device=inverse.device)
    removed: list[Tensor] = []
    while len(alive):
        pivots, u, v = _panel(inverse, moment, min(panel, len(alive)))
        removed.extend(alive[p] for p in pivots)
        left = torch.ones(len(alive), dtype=torch.bool, device=alive.device)
        left[pivots] = False
        u, v = u[left], v[left]
        # What is eliminated is dropped from the matrices: the work shrinks as the cube of it.
        inverse = inverse[left][:, left] - u @ u.T
        product = u @ v.T
        moment = moment[left][:, left] - product - product.T
        alive = alive[left]
    return torch.stack(removed).flip(0)


def _panel(inverse: Tensor, moment: Tensor, count: int) -> tuple[list[int], Tensor, Tensor]:
    """Choose `count` pivots one at a time; returns them with U and V, [n, count] each."""
    u, v = inverse.new_zeros(len(inverse), count), inverse.new_zeros(len(inverse), count)
    inverse_diagonal, moment_diagonal = inverse.diagonal().clone(), moment.diagonal().clone()
    costs_more = inverse.new_zeros(len(inverse))  # infinite once removed
    pivots: list[int] = []
    for t in range(count):
        p = int((moment_diagonal / inverse_diagonal + costs_more).argmin())
        a = inverse[:, p] - u[:, :t] @ u[p, :t]
        m = moment[:, p] - u[:, :t] @ v[p, :t] - v[:, :t] @ u[p, :t]
        u[:, t] = a / a[p].sqrt()
        v[:, t] = m / a[p].sqrt() - u[:, t] * m[p] / (2 * a[p])
        inverse_diagonal -= u[:, t].square()
        moment_diagonal -= 2 * u[:, t] * v[:, t]
        # Rounding may leave tiny negatives; a variance is positive.
        inverse_diagonal.clamp_(min=torch.finfo(inverse.dtype).tiny)
        moment_diagonal.clamp_(min=0)
        costs_more[p] = torch.inf
        pivots.append(p)
    return pivots, u, v


@dataclass(frozen=True)
class HeadPath:
    """Nested attention shapes, from dense to none.

    states: (query heads, KV heads) that are left at each step, ascending indices
    order:  [query_heads * head_dim] inputs of the output projection, most important first; the
            inputs of a state are the first `len(query heads) * head_dim` of them
    """

    states: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    order: Tensor


def head_path(
    problem: NormalEquations,
    *,
    head_dim: int,
    query_heads: int,
    kv_heads: int,
    parameters: Callable[[int, int], int],
    waypoints: Sequence[tuple[int, int]] = (),
) -> HeadPath:
    """Remove heads, one legal move at a time, by least cost per parameter saved.

    A move is a whole KV group with its query heads, or one query head in *every* group at once:
    only these leave a shape that grouped-query kernels can run. `parameters(query_heads,
    kv_heads)` is the size of a shape. `waypoints`, descending (query_heads, kv_heads), are shapes
    that the path has to pass through.
    """
    inverse, weight = _inverse_and_weight(problem)
    per_group = query_heads // kv_heads
    groups = {kv: list(range(kv * per_group, (kv + 1) * per_group)) for kv in range(kv_heads)}
    states = [_state(groups)]
    removed: list[Tensor] = []
    goals = [*waypoints, (0, 0)]
    while groups:
        while _shape(groups) == goals[0]:
            goals.pop(0)
        goal_queries, goal_kv = goals[0]
        goal_per_group = goal_queries // goal_kv if goal_kv else 0
        queries, kv = _shape(groups)
        moves: list[list[int]] = []
        if kv > goal_kv:
            moves += [list(heads) for heads in groups.values()]
        if queries // kv > max(goal_per_group, 1):
            moves.append(_one_of_every_group(inverse, weight, groups, head_dim))

        prices = [
            _block_cost(inverse, weight, _columns(heads, head_dim))
            / (parameters(queries, kv) - parameters(*_shape(_without(groups, heads))))
            for heads in moves
        ]
        chosen = moves[prices.index(min(prices))]
        columns = _columns(chosen, head_dim).to(inverse.device)
        inverse, weight = _remove_block(inverse, weight, columns)
        removed.append(columns)
        groups = _without(groups, chosen)
        states.append(_state(groups))
    return HeadPath(tuple(states), torch.cat(removed).flip(0))


def _inverse_and_weight(problem: NormalEquations) -> tuple[Tensor, Tensor]:
    factor = torch.linalg.cholesky(problem.gram)
    return torch.cholesky_inverse(factor), torch.cholesky_solve(problem.target, factor)


def _block_cost(inverse: Tensor, weight: Tensor, columns: Tensor) -> float:
    """tr(W_Pᵀ (A_PP)⁻¹ W_P): the growth of the squared error when the inputs P go."""
    factor = torch.linalg.cholesky(inverse[columns][:, columns])
    return float(torch.linalg.solve_triangular(factor, weight[columns], upper=False).square().sum())


def _remove_block(inverse: Tensor, weight: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Bring A and W up to date; removed rows become zero, and A's diagonal there one."""
    factor = torch.linalg.cholesky(inverse[columns][:, columns])
    inverse_rows, weight_rows = inverse[columns], weight[columns]
    weight = weight - inverse_rows.T @ torch.cholesky_solve(weight_rows, factor)
    inverse = inverse - inverse_rows.T @ torch.cholesky_solve(inverse_rows, factor)
    weight[columns] = 0
    inverse[columns] = 0
    inverse[:, columns] = 0
    inverse[columns, columns] = 1
    return inverse, weight


def _one_of_every_group(
    inverse: Tensor, weight: Tensor, groups: dict[int, list[int]], head_dim: int
) -> list[int]:
    """A query head of every group: in each the cheapest to lose beside those already taken."""
    taken: list[int] = []
    for heads in groups.values():
        costs = [_block_cost(inverse, weight, _columns([*taken, h], head_dim)) for h in heads]
        taken.append(heads[costs.index(min(costs))])
    return taken


def _columns(heads: Sequence[int], head_dim: int) -> Tensor:
    return torch.cat([torch.arange(h * head_dim, (h + 1) * head_dim) for h in heads])


def _without(groups: dict[int, list[int]], heads: list[int]) -> dict[int, list[int]]:
    left = {kv: [h for h in members if h not in heads] for kv, members in groups.items()}
    return {kv: members for kv, members in left.items() if members}


def _shape(groups: dict[int, list[int]]) -> tuple[int, int]:
    return sum(map(len, groups.values())), len(groups)


def _state(groups: dict[int, list[int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    queries = sorted(head for members in groups.values() for head in members)
    return tuple(queries), tuple(sorted(groups))
