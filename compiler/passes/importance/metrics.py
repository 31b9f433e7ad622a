# SPDX-License-Identifier: Apache-2.0
"""All metrics by the names that recipes use."""

from __future__ import annotations

from collections.abc import Mapping

from prunec.compiler.passes.importance import (
    cfsp,
    fluctuation,
    magnitude,
    obs,
    reconstruction,
    taylor,
    wanda,
)
from prunec.compiler.passes.importance.sublayer import Metric

METRICS: Mapping[str, Metric] = {
    "magnitude_l1": magnitude.l1,
    "magnitude_l2": magnitude.l2,
    "wanda": wanda.score,
    "fluctuation": fluctuation.score,
    "taylor_first": taylor.FIRST,
    "taylor_second": taylor.SECOND,
    "taylor_mixed": taylor.MIXED,
    "taylor_vector": taylor.VECTOR,
    "obs": obs.score,
    "reconstruction": reconstruction.score,
    "cfsp": cfsp.score,
}
