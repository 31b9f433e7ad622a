# SPDX-License-Identifier: Apache-2.0
"""What trials take: models that are pruned and judged, one after the other."""

from __future__ import annotations

from dataclasses import replace

from prunec.compiler.estimates import FLOAT32, Sizes, Windows, total_work
from prunec.compiler.estimates_search import judging
from prunec.compiler.estimates_walk import solving_bytes, walk
from prunec.compiler.model.layout import Layout
from prunec.compiler.model.placement import ROOMY, Placement
from prunec.compiler.plan import Cost, Estimate

#: Statistics that a tuner keeps in memory, see `tuning.pools`.
_KEPT_BYTES = 2**30


def trials(
    sizes: Sizes,
    held_out: Windows,
    *,
    number: int,
    top_k: int,
    statistics_bytes: int,
    solves: bool,
    walk_tokens: int,
    dense_target: float,
    first_order: float,
    eliminates: bool,
    start: Layout,
) -> Estimate:
    """Trials of a study.

    statistics_bytes: of all pools; solves: whether a trial fits weights, along `walk_tokens` tokens
    or, without any, on statistics; the others as of `walk`
    """
    kept = min(_KEPT_BYTES, statistics_bytes)
    disk_bytes = sizes.layers_bytes(start)
    solving = 0
    if solves and not walk_tokens:
        matrices = solving_bytes(sizes, ROOMY, first_order, eliminates=True)
        solving = matrices + FLOAT32 * sizes.widest**2
    judged = judging(
        sizes,
        held_out,
        models=number,
        top_k=top_k,
        beside=kept + solving,
        disk_bytes=disk_bytes,
    )
    if not walk_tokens:
        return judged
    text = Windows(-(-walk_tokens // held_out.length), held_out.length)
    walked = walk(
        sizes,
        text,
        disk_bytes=disk_bytes,
        dense_target=dense_target,
        first_order=first_order,
        eliminates=eliminates,
        kept=sizes.share(start),
    )

    def estimate(placement: Placement) -> Cost:
        cost, one = judged(placement), walked(placement)
        return replace(
            cost,
            token_forwards=cost.token_forwards + number * one.token_forwards,
            memory_bytes=max(cost.memory_bytes, one.memory_bytes + kept),
            host_bytes=max(cost.host_bytes, one.host_bytes + kept),
            gpu_bytes=max(cost.gpu_bytes, one.gpu_bytes),
            scratch_bytes=max(cost.scratch_bytes, one.scratch_bytes),
            work=total_work(cost.work, *[one.work] * number),
        )

    return estimate
