# SPDX-License-Identifier: Apache-2.0
"""Walks through the model: every size of every layer, or the one that was chosen."""

from __future__ import annotations

from typing import Any

import torch

from prunec.compiler.estimates_walk import walk_forwards
from prunec.compiler.layer_store import StoredLayers
from prunec.compiler.model.layout import Layout
from prunec.compiler.passes.sequential import Solver, prune_sequentially
from prunec.compiler.plan import Step
from prunec.compiler.steps.context import (
    Context,
    Progress,
    Summary,
    chosen_by,
    layout_of,
    plain_layout,
)
from prunec.compiler.steps.importance import resolve_by_importance
from prunec.compiler.store import Entry
from prunec.compiler.target import budget_of


@torch.no_grad()
def run_supernet(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    layout = layout_of(context, step, "centre")
    waypoints: list[tuple[int, int]] = []
    if step.params["tied"]:
        budget = budget_of(context.recipe, context.subject.facts)
        waypoints = budget.tied_path((layout[0].query_heads, layout[0].kv_heads))
    return _walk(context, step, entry, progress, layout, waypoints, with_nested=True)


@torch.no_grad()
def run_resolve(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    settings = settings_of(context, step)
    if settings["solver"] == "importance":
        if not context.workers.leads:
            return {}
        return resolve_by_importance(context, step, entry, progress, settings)
    layout = layout_of(context, step, "layout")
    return _walk(context, step, entry, progress, layout, [], with_nested=False)


def settings_of(context: Context, step: Step) -> dict[str, Any]:
    """A step's parameters; where another step chose some of them, those are what it chose."""
    params = dict(step.params)
    if "settings" in step.inputs:
        params |= chosen_by(context, step, "settings")["settings"]
    return params


def _walk(
    context: Context,
    step: Step,
    entry: Entry,
    progress: Progress,
    layout: Layout,
    waypoints: list[tuple[int, int]],
    *,
    with_nested: bool,
) -> Summary:
    ids, params = context.ids(step), settings_of(context, step)
    prune_sequentially(
        context.decoder,
        ids,
        layout,
        Solver(params["damping"], params["dense_target"], params["first_order"]),
        StoredLayers(entry, context.decoder.device, with_nested),
        waypoints=waypoints,
        workers=context.workers,
        on_layer=lambda done: progress(done, len(layout), "layers"),
    )
    return {
        "token_forwards": walk_forwards(params["dense_target"]) * ids.numel(),
        "layout": plain_layout(layout),
    }
