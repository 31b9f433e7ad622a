# SPDX-License-Identifier: Apache-2.0
"""Whole windows by weights."""

from __future__ import annotations

import math
from collections.abc import Mapping


def shares_of(weights: Mapping[str, float], windows: int) -> dict[str, int]:
    """How many of the windows each gets: in proportion to the weights, rounded by the largest
    remainder, at least one each.

    Weights are above 0. ValueError where there are fewer windows than weights.
    """
    if windows < len(weights):
        raise ValueError(f"{windows} windows for {len(weights)} weights")
    largest = max(weights.values())  # divided by first: the sum may overflow
    whole = sum(weight / largest for weight in weights.values())
    exact = {name: windows * (weight / largest / whole) for name, weight in weights.items()}
    found = {name: max(1, math.floor(share)) for name, share in exact.items()}
    while sum(found.values()) < windows:
        found[max(found, key=lambda name: exact[name] - found[name])] += 1
    while sum(found.values()) > windows:  # the least shares were rounded up to one
        rich = (name for name in found if found[name] > 1)
        found[min(rich, key=lambda name: exact[name] - found[name])] -= 1
    return found
