# SPDX-License-Identifier: Apache-2.0
"""The order in which a sublayer loses its units: greedy optimal brain surgery, exactly updated.

Removing the inputs P from the least-squares problem costs `tr(W_Pᵀ (A_PP)⁻¹ W_P)`, where
`A = H⁻¹` and W is the dense map. After each removal both are brought up to date, so that every
choice is made on what is really left. Everything is float64 and independent of d_out where it can
be.

What goes is what the dense map needs least, even where the weights that stay are then fitted to
more than its outputs: units that only help to mend what earlier layers have lost are worth less
than those that the model was trained to have.

`first_order` adds Týr's prior for units that carry much of the output: twice `⟨W_P, G_P⟩` times
it, with W as it is by then and `G = H W` as it was. At 1 the two terms are balanced as published
(which halves both).

Source: optimal brain surgeon as in ZipLM and SlimGPT; the first-order term from Týr-the-Pruner
(arXiv 2503.09657, its code: signed); nested use and the d_out-free update ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunec.compiler.passes.least_squares import NormalEquations, cholesky, invert, row_blocks

#: Pivots chosen between two updates of the matrices: enough for the products to run at full speed,
#: few enough for what is pending to stay in the cache, where every pivot reads all of it.
PANEL = 128


def channel_order(
    problem: NormalEquations, panel: int = PANEL, *, first_order: float = 0.0, fewest: int = 0
) -> Tensor:
    """[d_in]: single inputs (FFN neurons), most important first. The `fewest` that always stay come
    in no order, and take no work.

    The cost of input p is `M_pp / A_pp` with `M = W Wᵀ`, and `2 first_order N_pp` with `N = W Gᵀ`.
    With the pivot's columns `a` of A and `m` of M and its row `n` of N, removing it takes `u uᵀ`
    from A, `u vᵀ + v uᵀ` from M and `u rᵀ` from N, where `u = a / √a_p`, `r = n / √a_p` and
    `v = m / √a_p − u m_p / (2 a_p)`. The updates are applied lazily, a panel of pivots at a time,
    so that the work is done by matrix products; only the diagonals are kept current.

    Takes about as long as two inversions of the Gram matrix. Beside the problem itself, at most
    two [d_in, d_in] matrices and two [d_in, d_out] ones are alive (a third matrix with
    `first_order`).
    """
    inverse, weight = _inverse_and_weight(problem)
    moment = weight @ weight.T
    matrices = [inverse, moment]
    if first_order:
        matrices.append(weight @ _output_products(problem, weight).T)
    del weight
    alive = torch.arange(len(inverse), device=inverse.device)
    order = torch.empty_like(alive)
    while len(alive) > fewest:
        count = min(panel, len(alive) - fewest)
        left = len(alive) - count
        # Exactly, A_pp never falls below 1 / H_pp; with rounding it must not either.
        floor = problem.diagonal[alive].reciprocal()
        pivots, pending = _choose_panel(matrices, count, floor, first_order)
        order[left : len(alive)] = alive[pivots].flip(0)
        # The units behind `left` that stay take the places of those before it that go. What is
        # left then fills a corner of the same memory, and the work shrinks as the cube of it.
        gone = torch.zeros_like(alive, dtype=torch.bool)
        gone[pivots] = True
        to, source = gone[:left].nonzero()[:, 0], left + (~gone[left:]).nonzero()[:, 0]
        alive[to] = alive[source]
        for x in (*pending, *(x.T for x in matrices), *matrices):
            x[:, to] = x[:, source]
        alive = alive[:left]
        matrices = [x[:left, :left] for x in matrices]
        u, v, *r = (x[:, :left] for x in pending)
        matrices[0].addmm_(u.T, u, alpha=-1)
        matrices[1].addmm_(torch.cat([u, v]).T, torch.cat([v, u]), alpha=-1)
        if r:
            matrices[2].addmm_(u.T, r[0], alpha=-1)
    order[: len(alive)] = alive
    return order


def _choose_panel(
    matrices: Sequence[Tensor], count: int, floor: Tensor, first_order: float
) -> tuple[Tensor, list[Tensor]]:
    """`count` pivots, chosen one at a time, with the updates U, V (and R), [count, n] each.

    Pivots stay on the device as [1] tensors: nothing waits for a number to reach the host.
    """
    inverse, moment = matrices[:2]
    pending = [x.new_empty(count, len(x)) for x in matrices]
    u, v, *r = pending
    diagonals = [x.diagonal().clone() for x in matrices]
    pivots = torch.empty(count, dtype=torch.long, device=inverse.device)
    for t in range(count):
        cost = diagonals[1] / diagonals[0]
        if r:
            cost.add_(diagonals[2], alpha=2 * first_order)
        p = pivots[t : t + 1] = cost.argmin(dim=0, keepdim=True)
        u_p, v_p = u[:t, p].squeeze(1), v[:t, p].squeeze(1)
        a = inverse[p].squeeze(0).addmv_(u[:t].T, u_p, alpha=-1)
        m = moment[p].squeeze(0).addmv_(u[:t].T, v_p, alpha=-1).addmv_(v[:t].T, u_p, alpha=-1)
        scale = torch.maximum(a[p], floor[p]).rsqrt()
        torch.mul(a, scale, out=u[t])
        torch.mul(m, scale, out=v[t]).addcmul_(u[t], m[p] * scale.square(), value=-0.5)
        diagonals[0].addcmul_(u[t], u[t], value=-1)
        diagonals[1].addcmul_(u[t], v[t], value=-2)
        if r:
            n = matrices[2][p].squeeze(0).addmv_(r[0][:t].T, u_p, alpha=-1)
            torch.mul(n, scale, out=r[0][t])
            diagonals[2].addcmul_(u[t], r[0][t], value=-1)
        diagonals[0].clamp_(min=floor)
        diagonals[1].clamp_(min=0)
        diagonals[1][p] = torch.inf  # and stays so: never chosen again
    return pivots, pending


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
    first_order: float = 0.0,
) -> HeadPath:
    """Remove heads, one legal move at a time, by least cost per parameter saved.

    A move is a whole KV group with its query heads, or one query head in *every* group at once:
    only these leave a shape that grouped-query kernels can run. `parameters(query_heads,
    kv_heads)` is the size of a shape. `waypoints`, descending (query_heads, kv_heads), are shapes
    that the path has to pass through.
    """
    inverse, weight = _inverse_and_weight(problem)
    products = _output_products(problem, weight) if first_order else weight

    def cost(heads: Sequence[int]) -> float:
        columns = _columns(heads, head_dim).to(inverse.device)
        prior = float((weight[columns] * products[columns]).sum()) if first_order else 0.0
        return _block_cost(inverse, weight, columns) + 2 * first_order * prior

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
            moves.append(_one_of_every_group(groups, cost))

        prices = [
            cost(heads) / (parameters(queries, kv) - parameters(*_shape(_without(groups, heads))))
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
    factor = problem.factor()
    weight = problem.dense
    if weight is None:
        weight = torch.cholesky_solve(problem.target, factor)
    return invert(factor), weight


def _output_products(problem: NormalEquations, weight: Tensor) -> Tensor:
    """[d_in, d_out]: H W, of every input with every output of the dense map W."""
    if problem.dense is None:
        return problem.target
    blocks = row_blocks(len(weight))
    return torch.cat([problem.gram[rows].to(weight.device) @ weight for rows in blocks])


def _block_cost(inverse: Tensor, weight: Tensor, columns: Tensor) -> float:
    """tr(W_Pᵀ (A_PP)⁻¹ W_P): the growth of the squared error when the inputs P go."""
    factor = cholesky(inverse[columns][:, columns])
    return float(torch.linalg.solve_triangular(factor, weight[columns], upper=False).square().sum())


def _remove_block(inverse: Tensor, weight: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Bring A and W up to date; removed rows become zero, and A's diagonal there one."""
    factor = cholesky(inverse[columns][:, columns])
    inverse_rows, weight_rows = inverse[columns], weight[columns]
    weight = weight - inverse_rows.T @ torch.cholesky_solve(weight_rows, factor)
    inverse = inverse - inverse_rows.T @ torch.cholesky_solve(inverse_rows, factor)
    weight[columns] = 0
    inverse[columns] = 0
    inverse[:, columns] = 0
    inverse[columns, columns] = 1
    return inverse, weight


def _one_of_every_group(
    groups: dict[int, list[int]], cost: Callable[[Sequence[int]], float]
) -> list[int]:
    """A query head of every group: in each the cheapest to lose beside those already taken."""
    taken: list[int] = []
    for heads in groups.values():
        costs = [cost([*taken, head]) for head in heads]
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
