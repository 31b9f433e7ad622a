# SPDX-License-Identifier: Apache-2.0
"""Train the pruned model back: adapters over the whole model, or the weights layer by layer."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from prunec.compiler.layer_store import load_cut, save_cut
from prunec.compiler.model.layout import layout_from_plain
from prunec.compiler.passes.nested import CutLayer
from prunec.compiler.plan import Step
from prunec.compiler.recovery import blockwise
from prunec.compiler.recovery.lora import Adapters, projections, recover_lora
from prunec.compiler.recovery.objective import DenseStates, Objective, Text, Weights
from prunec.compiler.recovery.schedule import Schedule
from prunec.compiler.recovery.teacher import StoredTeacher, write_distributions
from prunec.compiler.recovery_store import StoredLayerRecovery, StoredTraining
from prunec.compiler.steps.context import Context, Progress, Summary
from prunec.compiler.steps.export import pruned_model
from prunec.compiler.store import Entry, LostResultError
from prunec.validators.results import RecoveryPoint, RecoveryResult

_OUTCOME = "outcome"

Settings = TypeVar("Settings", Adapters, Schedule, Weights, blockwise.Settings)


@dataclass(frozen=True)
class _Trained:
    """What a recovery has come to. tensors: those of a layer that it has changed, by their names in
    the layer; layers_kept: how many it has changed for the better, None where it takes all."""

    result: RecoveryResult
    token_forwards: int
    tensors: Callable[[int], Mapping[str, Tensor]]
    layers_kept: int | None = None


def run_distributions(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    """The dense model's next-token distributions of a text, for `run_recover`."""
    ids = context.ids(step)
    write_distributions(
        context.decoder,
        ids,
        step.params["top_k"],
        entry,
        lambda done: progress(done, ids.numel(), "tokens"),
    )
    return {"token_forwards": ids.numel()}


def run_recover(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    """Layers as they came in if training was of no use, else as it made them."""
    layout = context.found(step, "layers")["layout"]
    finished = entry.load_json(_OUTCOME)
    if finished and all(entry.tensor_file(f"layer-{index}") for index in range(len(layout))):
        return finished
    entry.forget_json(_OUTCOME)  # never beside layers of another training
    work = Entry(entry.folder / "work")  # what a killed build goes on from
    run = _by_adapters if step.params["kind"] == "lora" else _by_layers
    trained = run(context, step, work, progress)
    for index in range(len(layout)):
        cut = _cut(context.entry(step, "layers"), index)
        changed = trained.tensors(index) if trained.result.kept else {}
        kept = {n: changed[n].to(t.dtype) if n in changed else t for n, t in cut.tensors.items()}
        save_cut(entry, index, CutLayer(cut.selection, kept))
    found = {
        "recovery": asdict(trained.result),
        "token_forwards": trained.token_forwards,
        "layers_kept": trained.layers_kept,
        "layout": layout,
    }
    entry.save_json(_OUTCOME, found)
    shutil.rmtree(work.folder, ignore_errors=True)
    return found


def recovered_in_words(found: Summary) -> str:
    """What a recovery has come to, in one line."""
    result = found["recovery"]
    moved = f"{result['before']:.4f} → {result['after']:.4f} in {result['tokens']:,} tokens"
    if not result["kept"]:
        return f"of no use, the layers stay as they were: held-out loss {moved}"
    if (kept := found["layers_kept"]) is not None and kept < len(found["layout"]):
        moved += f", {kept} of {len(found['layout'])} layers changed"
    return f"held-out loss {moved}" + (f"; {result['stopped']}" if result["stopped"] else "")


def _by_adapters(context: Context, step: Step, work: Entry, progress: Progress) -> _Trained:
    facts, params = context.subject.facts, step.params
    weights = _of(Weights, params)
    layout = layout_from_plain(context.found(step, "layers")["layout"], facts.head_dim)
    recovered = recover_lora(
        pruned_model(context, step),
        facts,
        layout,
        _of(Adapters, params),
        _of(Schedule, params),
        Objective(weights, DenseStates(context.decoder) if weights.hidden else None),
        _text(context, step, "tokens", "teacher"),
        _text(context, step, "held-out", "held-out-teacher"),
        StoredTraining(work),
        context.decoder.device,
        getattr(torch, context.recipe.model.dtype),
        progress,
    )
    names = projections(facts, layout)

    def tensors(index: int) -> Mapping[str, Tensor]:
        return {
            f"{name}.weight": recovered.model.get_parameter(
                facts.family.in_layer(index, f"{name}.weight")
            ).detach()
            for name in names[index]
        }

    return _Trained(recovered.result, recovered.token_forwards, tensors)


def _by_layers(context: Context, step: Step, work: Entry, progress: Progress) -> _Trained:
    settings, ids = _of(blockwise.Settings, step.params), context.ids(step)
    found = blockwise.recover_blockwise(
        context.decoder,
        partial(_cut, context.entry(step, "layers")),
        ids,
        context.ids(step, "held-out"),
        settings,
        StoredLayerRecovery(work),
        progress,
    )
    tokens, layers = settings.epochs * ids.numel(), len(found.layers)
    points = [RecoveryPoint(0, found.before, None)]
    points += [
        RecoveryPoint(tokens * done // layers, layer.divergence, None)
        for done, layer in enumerate(found.layers, start=1)
        if layer.divergence is not None
    ]
    result = RecoveryResult(
        kind="blockwise",
        loss=Weights(labels=0, divergence=1, hidden=0).in_words(),
        tokens=tokens,
        before=found.before,
        after=found.after,
        kept=found.kept,
        trained=max(layer.parameters for layer in found.layers),
        points=tuple(points),
    )
    kept = sum(layer.kept for layer in found.layers)
    return _Trained(
        result, found.token_forwards, lambda index: _cut(work, index).tensors, layers_kept=kept
    )


def _of(kind: type[Settings], params: Mapping[str, Any]) -> Settings:
    return kind(**{field.name: params[field.name] for field in fields(kind)})


def _text(context: Context, step: Step, tokens: str, teacher: str) -> Text:
    ids = context.ids(step, tokens)
    if teacher not in step.inputs:
        return Text(ids, None)
    return Text(ids, StoredTeacher(context.entry(step, teacher), *ids.shape))


def _cut(layers: Entry, index: int) -> CutLayer:
    cut = load_cut(layers, index)
    if cut is None:
        raise LostResultError(layers, f"layer {index}")
    return cut
