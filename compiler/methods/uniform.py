# SPDX-License-Identifier: Apache-2.0
"""Every layer loses the same share: the solver of `tyr` without its search."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from prunec.compiler.estimates_walk import walk
from prunec.compiler.model.layout import Layout
from prunec.compiler.plan_builder import PlanBuilder, plain


def plan(steps: PlanBuilder, start: Layout) -> str:
    add_resolve(steps, start)
    return "resolve"


def add_resolve(
    steps: PlanBuilder,
    start: Layout,
    rank: Mapping[str, int] = MappingProxyType({}),
    *,
    name: str = "resolve",
    tokens: str = "calibration-tokens",
) -> None:
    """The step that prunes along the text of step `tokens`; `rank`: of tuned settings, which."""
    solver = steps.solver()
    steps.add(
        name,
        "resolve",
        "prune layer by layer, all alike, and refit what stays",
        {**steps.model, **solver, "layout": plain(start), **rank},
        {"tokens": tokens} | steps.tuned,
        walk(
            steps.sizes,
            steps.text(tokens),
            disk_bytes=steps.sizes.layers_bytes(start),
            dense_target=solver["dense_target"],
            first_order=solver.get("first_order", 0.0),
            kept=steps.sizes.share(start),
        ),
    )
