# SPDX-License-Identifier: Apache-2.0
"""The floor to beat: the units of smallest norm go, nothing is refitted."""

from __future__ import annotations

from prunec.compiler.model.layout import Layout
from prunec.compiler.plan import Cost
from prunec.compiler.plan_builder import PlanBuilder, plain


def plan(steps: PlanBuilder, start: Layout) -> str:
    steps.add(
        "resolve",
        "resolve",
        "remove the units of smallest norm; nothing is refitted",
        steps.model | {"solver": "magnitude", "layout": plain(start)},
        {},
        Cost(
            memory_bytes=2 * steps.estimate.layer_bytes,
            disk_bytes=steps.estimate.weight_bytes(start),
        ),
    )
    return "resolve"
