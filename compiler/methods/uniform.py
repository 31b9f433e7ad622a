# SPDX-License-Identifier: Apache-2.0
"""Every layer loses the same share: the solver of `tyr` without its search."""

from __future__ import annotations

from prunec.compiler.model.layout import Layout
from prunec.compiler.plan_builder import PlanBuilder, plain


def plan(steps: PlanBuilder, start: Layout) -> str:
    steps.add(
        "resolve",
        "resolve",
        "prune layer by layer, all alike, and refit what stays",
        steps.model | steps.solver() | {"layout": plain(start)},
        {"tokens": "calibration-tokens"} | steps.tuned,
        steps.walk(steps.solver()["dense_target"], steps.estimate.weight_bytes(start)),
    )
    return "resolve"
