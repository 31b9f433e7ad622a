# SPDX-License-Identifier: Apache-2.0
"""Units chosen once by their scores, in all layers; then sliced, or refitted along the walk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prunec.compiler.diagnostics import BuildError
from prunec.compiler.estimates_walk import walk_forwards
from prunec.compiler.layer_store import StoredLayers, save_cut
from prunec.compiler.model.layout import LayerSelection, Layout
from prunec.compiler.model.surgery import slice_layer
from prunec.compiler.passes.importance.ranking import Chosen
from prunec.compiler.passes.importance.scoring import Scoring, score_layer
from prunec.compiler.passes.importance.selection import select_units
from prunec.compiler.passes.importance.shares import layer_shares
from prunec.compiler.passes.importance.statistics import LayerStatistics, mixed
from prunec.compiler.passes.nested import CutLayer
from prunec.compiler.passes.sequential import Solver, prune_sequentially
from prunec.compiler.plan import Step
from prunec.compiler.search.allocation import allocate
from prunec.compiler.search.budget import InfeasibleTargetError
from prunec.compiler.steps.context import Context, Progress, Summary, layout_of, plain_layout
from prunec.compiler.steps.statistics import load_statistics
from prunec.compiler.store import Entry
from prunec.compiler.target import budget_of

_STATISTICS = "statistics"


def resolve_by_importance(
    context: Context, step: Step, entry: Entry, progress: Progress, settings: Mapping[str, Any]
) -> Summary:
    """settings: those of `Scoring`, refit; dense_target where it refits; allocation, spread, slope,
    bend and attention where neither `layout` is given nor a step plays that role.

    Statistics come from the step in the role `statistics`, all its groups by their tokens; or, of
    several such steps, from the groups that `mixture` names: [role, number of the group, weight].
    """
    layout = _layout(context, step, settings)
    names = ("metrics", "aggregation", "exponent", "damping", "by_part")
    scoring = Scoring(**{name: settings[name] for name in names})
    facts, selections = context.subject.facts, []
    steps = len(layout) * (2 if settings["refit"] else 1)
    for index, spec in enumerate(layout):
        tensors = context.decoder.layer_tensors(index)
        statistics = _statistics(context, step, settings, index)
        scores = score_layer(facts, tensors, statistics, scoring)
        selections.append(select_units(facts, scores, spec))
        if not settings["refit"]:
            selection = selections[-1]
            save_cut(entry, index, CutLayer(selection, slice_layer(facts, tensors, selection)))
        progress(index + 1, steps, "layers")
    summary: Summary = {"token_forwards": 0, "layout": plain_layout(layout)}
    if settings["refit"]:
        summary["token_forwards"] = _refit(
            context, step, entry, progress, settings, layout, selections
        )
    return summary


def _refit(
    context: Context,
    step: Step,
    entry: Entry,
    progress: Progress,
    settings: Mapping[str, Any],
    layout: Layout,
    selections: list[LayerSelection],
) -> int:
    """The walk with units that are chosen already. Returns token-forwards."""
    ids, dense_target = context.ids(step), settings["dense_target"]
    prune_sequentially(
        context.decoder,
        ids,
        layout,
        Solver(settings["damping"], dense_target),
        StoredLayers(entry, context.decoder.device, with_nested=False),
        ranking=Chosen(selections),
        on_layer=lambda done: progress(len(layout) + done, 2 * len(layout), "layers"),
    )
    return walk_forwards(dense_target) * ids.numel()


def _layout(context: Context, step: Step, settings: Mapping[str, Any]) -> Layout:
    if "layout" in step.inputs or "layout" in step.params:
        return layout_of(context, step, "layout")
    facts = context.subject.facts
    turned = None
    if settings["allocation"] != "uniform":
        turned = _turned(context, step, settings)
    spread, slope, bend = (settings[name] for name in ("spread", "slope", "bend"))
    shares = layer_shares(facts.layers, turned, spread=spread, slope=slope, bend=bend)
    try:
        return allocate(budget_of(context.recipe, facts), shares, settings["attention"])
    except InfeasibleTargetError as error:
        raise BuildError(
            str(error),
            hint="bring method.spread, slope and bend nearer to 0 and attention nearer to 1",
        ) from None


def _turned(context: Context, step: Step, settings: Mapping[str, Any]) -> list[float]:
    """Of every layer the mean over tokens of how far it turns the hidden states."""
    groups = list(_groups(context, step, settings))
    whole = sum(weight for _, _, weight in groups)
    turned = [0.0] * context.subject.facts.layers
    for role, number, weight in groups:
        for index, layer in enumerate(context.found(step, role)["layers"]):
            here = layer[number]
            turned[index] += weight / whole * here[settings["allocation"]] / here["tokens"]
    return turned


def _statistics(
    context: Context, step: Step, settings: Mapping[str, Any], layer: int
) -> LayerStatistics | None:
    """A layer's statistics, on the device; None where the plan collects none."""
    groups = list(_groups(context, step, settings))
    device = context.decoder.device
    known = {
        role: load_statistics(context.entry(step, role), layer, device)
        for role in {role for role, _, _ in groups}
    }
    chosen = [known[role][number] for role, number, _ in groups]
    return mixed(chosen, [weight for _, _, weight in groups]) if groups else None


def _groups(
    context: Context, step: Step, settings: Mapping[str, Any]
) -> Iterator[tuple[str, int, float]]:
    """(role of a statistics step, number of a group, weight): what is mixed."""
    if "mixture" in settings:
        yield from ((role, number, weight) for role, number, weight in settings["mixture"])
    elif _STATISTICS in step.inputs:
        for number, group in enumerate(context.found(step, _STATISTICS)["layers"][0]):
            yield _STATISTICS, number, group["tokens"]
