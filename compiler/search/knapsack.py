# SPDX-License-Identifier: Apache-2.0
"""One option for every item at least value within a limit: the multiple-choice knapsack."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

#: Costs are rounded to this share of the limit.
BINS = 4096


def cheapest(
    costs: Sequence[Numbers], values: Sequence[Numbers], limit: float, bins: int = BINS
) -> list[int] | None:
    """For every item the option that makes the sum of values least; None if nothing fits.

    costs, values: [options] of every item; costs are not negative. Dynamic programming over the
    limit in `bins` steps: exact for costs that are whole multiples of a step, otherwise the sum
    of costs may miss the limit by half a step an item.
    """
    if limit <= 0:
        return None
    weights = [np.rint(cost / limit * bins).astype(np.int64) for cost in costs]
    # best[c]: the least value of the items so far at a total cost of exactly c steps
    best = np.full(bins + 1, np.inf)
    best[0] = 0.0
    choices = []
    for weight, value in zip(weights, values, strict=True):
        options = np.full((len(weight), bins + 1), np.inf)
        for option, (w, v) in enumerate(zip(weight, value, strict=True)):
            if w <= bins:
                options[option, w:] = best[: bins + 1 - w] + v
        choice = options.argmin(axis=0)
        best = options[choice, np.arange(bins + 1)]
        choices.append(choice)
    at = int(best.argmin())
    if not np.isfinite(best[at]):
        return None
    picked = []
    for weight, choice in zip(reversed(weights), reversed(choices), strict=True):
        option = int(choice[at])
        picked.append(option)
        at -= int(weight[option])
    return picked[::-1]
