# SPDX-License-Identifier: Apache-2.0
"""What a unit is worth: one file a metric, the statistics they read, the choice made of them.

What metrics need is known here, for plans, which import no torch; the metrics are in `metrics.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

#: Sums of projections' inputs, the Gram matrices of the last ones', gradients of the loss.
Need = Literal["inputs", "gram", "gradients"]

#: What has to be collected of calibration text for each metric; nothing for those of weights alone.
NEEDS: Mapping[str, frozenset[Need]] = {
    "magnitude_l1": frozenset(),
    "magnitude_l2": frozenset(),
    "wanda": frozenset({"inputs"}),
    "fluctuation": frozenset({"inputs"}),
    "taylor_first": frozenset({"gradients"}),
    "taylor_second": frozenset({"gradients"}),
    "taylor_mixed": frozenset({"gradients"}),
    "taylor_vector": frozenset({"gradients"}),
    "obs": frozenset({"gram"}),
    "reconstruction": frozenset({"gram"}),
    "cfsp": frozenset({"inputs"}),
}


def needs_of(metrics: Iterable[str]) -> frozenset[Need]:
    """What has to be collected for some metrics together."""
    return frozenset().union(*(NEEDS[name] for name in metrics))
