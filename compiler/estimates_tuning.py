# SPDX-License-Identifier: Apache-2.0
"""What trials take: models that are pruned on statistics that are there, and judged."""

from __future__ import annotations

from prunec.compiler.estimates import FLOAT32, Sizes, Windows
from prunec.compiler.estimates_search import judging
from prunec.compiler.estimates_walk import solving_bytes
from prunec.compiler.model.placement import ROOMY
from prunec.compiler.plan import Estimate

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
    first_order: float,
    disk_bytes: int,
) -> Estimate:
    """Trials of a study.

    statistics_bytes: of all pools; solves: whether a trial fits weights; the others as of `judging`
    """
    beside = min(_KEPT_BYTES, statistics_bytes)
    if solves:  # matrices of a sublayer, float32 and float64
        beside += solving_bytes(sizes, ROOMY, first_order, eliminates=True)
        beside += FLOAT32 * sizes.widest**2
    return judging(
        sizes, held_out, models=number, top_k=top_k, beside=beside, disk_bytes=disk_bytes
    )
