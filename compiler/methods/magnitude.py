# SPDX-License-Identifier: Apache-2.0
"""The floor to beat: the units of smallest norm go, nothing is refitted."""

from __future__ import annotations

from prunec.compiler.methods.importance import add_resolve
from prunec.compiler.model.layout import Layout
from prunec.compiler.plan_builder import PlanBuilder, plain

#: Squared weights, coupled tensors summed.
_SCORING = {
    "metrics": {"magnitude_l2": 1.0},
    "aggregation": "sum",
    "exponent": 1.0,
    "damping": 0.01,  # of no metric that is used
    "by_part": False,
}


def plan(steps: PlanBuilder, start: Layout) -> str:
    add_resolve(steps, start, _SCORING | {"layout": plain(start)}, {}, refit=False)
    return "resolve"
