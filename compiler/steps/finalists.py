# SPDX-License-Identifier: Apache-2.0
"""The best trials, pruned in full: the one that is best on the held-out text is what goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from prunec.compiler.layer_store import load_cut, save_cut
from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.layout import layout_from_plain
from prunec.compiler.passes.nested import CutLayer
from prunec.compiler.plan import Step
from prunec.compiler.steps.context import Context, Progress, Summary
from prunec.compiler.steps.teacher import teacher_of
from prunec.compiler.store import Entry, LostResultError
from prunec.compiler.tuning.held_out import HeldOut, scores_of, value_of


@torch.no_grad()
def run_finalists(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    """Layers of the best of the steps `layers-1`, `layers-2`, …, with what each was worth."""
    roles = [role for role in step.inputs if role.startswith("layers-")]
    held_out = HeldOut(context.ids(step), teacher_of(context, step))
    values = []
    for number, role in enumerate(roles, start=1):
        values.append(_value(context, step, role, held_out))
        progress(number, len(roles), "finalists")
    best = place_of_least(values)
    layers, layout = context.entry(step, roles[best]), context.found(step, roles[best])["layout"]
    for index in range(len(layout)):
        save_cut(entry, index, _cut(layers, index))
    return {
        "token_forwards": len(roles) * held_out.ids.numel(),
        "layout": layout,
        "values": values,
        "best": best,
    }


def place_of_least(values: Sequence[float]) -> int:
    """Where the least finite value stands; ModelError if there is none."""
    finite = [(value, place) for place, value in enumerate(values) if math.isfinite(value)]
    if not finite:
        raise ModelError(
            "no finalist's output on the held-out text is finite",
            hint="raise calibration.tokens",
        )
    return min(finite)[1]


def _value(context: Context, step: Step, role: str, held_out: HeldOut) -> float:
    """The objective of a finished model, one layer in memory at a time."""
    decoder, layers = context.decoder, context.entry(step, role)
    layout = layout_from_plain(context.found(step, role)["layout"], decoder.facts.head_dim)

    loaded = (
        decoder.layer(index, spec, _cut(layers, index).tensors) for index, spec in enumerate(layout)
    )
    everything = slice(0, len(held_out.ids))
    return value_of([scores_of(decoder, loaded, held_out, everything)], held_out)


def _cut(layers: Entry, index: int) -> CutLayer:
    cut = load_cut(layers, index)
    if cut is None:
        raise LostResultError(layers, f"layer {index}")
    return cut


def finalists_in_words(found: Summary) -> str:
    """Which finalist won, in a line."""
    values = ", ".join(f"{value:.4f}" for value in found["values"])
    return f"{values} on the held-out text, pruned in full; number {found['best'] + 1} is taken"
