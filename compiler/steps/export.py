# SPDX-License-Identifier: Apache-2.0
"""Steps that leave the store: write an export into the output folder, and judge what lies there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunec.compiler.layer_store import load_cut
from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import layout_from_plain
from prunec.compiler.plan import Step, digest
from prunec.compiler.steps.context import Context, Progress, Summary
from prunec.compiler.store import Entry, LostResultError, file_sha256, sync_tree, write_text
from prunec.exporters import EXPORTERS, exporter_for
from prunec.exporters.artefact import Provenance
from prunec.validators.completion import complete_with
from prunec.validators.loading import open_model
from prunec.validators.manifest import LISTING
from prunec.validators.perplexity import Perplexity, measure_perplexity


def run_export(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    """Write beside the final place, verify, flush, rename."""
    facts, recipe = context.subject.facts, context.recipe
    layers = context.entry(step, "layers")
    plain = context.found(step, "layers")["layout"]
    layout = layout_from_plain(plain, facts.head_dim)
    kind = step.params["kind"]
    exporter = exporter_for(step.params)
    writer = exporter.load()

    final = context.output / kind
    partial = partial_folder(context.output, kind)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    writer.export(
        partial,
        context.folder,
        facts,
        layout,
        step.params["layout"],
        _tensors(context, layers, facts, progress),
        getattr(torch, recipe.model.dtype),
        provenance=_provenance(context),
        **{name: step.params[name] for name in exporter.options},
    )
    written = writer.verify(partial, layout, facts)
    _list_files(partial)
    sync_tree(partial)
    replace_folder(partial, final, old_folder(context.output, kind))
    return {
        "files": folder_digests(final),
        "provenance": _provenance_digest(context),
        "parameters": written.parameters,
        "prunable_parameters": written.prunable_parameters,
        "weight_bytes": written.weight_bytes,
        "layout": plain,
    }


def _list_files(folder: Path) -> None:
    """Write the hashes of an artefact's files into it. The model card is its users' to edit."""
    files = {
        path: {"sha256": sha256, "bytes": (folder / path).stat().st_size}
        for path, sha256 in folder_digests(folder).items()
        if path != "README.md"
    }
    (folder / LISTING).parent.mkdir(exist_ok=True)
    write_text(folder / LISTING, json.dumps({"files": files}, indent=2) + "\n")


def _tensors(
    context: Context, layers: Entry, facts: Facts, progress: Progress
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the pruned model by its full name, one layer in memory at a time."""
    family, checkpoint = facts.family, context.decoder.checkpoint
    yield family.embedding, checkpoint.tensor(family.embedding)
    for index in range(facts.layers):
        cut = load_cut(layers, index)
        if cut is None:
            raise LostResultError(layers, f"layer {index}")
        for name, tensor in sorted(cut.tensors.items()):
            yield family.in_layer(index, name), tensor
        progress(index + 1, facts.layers, "layers")
    yield family.final_norm, checkpoint.tensor(family.final_norm)
    if not facts.tied:
        yield family.head, checkpoint.tensor(family.head)


def _provenance(context: Context) -> Provenance:
    recipe = context.recipe
    calibration = "no calibration text"
    if recipe.calibration:
        source = context.plan.step("calibration-tokens").params["source"]
        calibration = (
            f"{describe_source(source)}, {recipe.calibration.tokens:,} tokens, "
            f"seed {recipe.calibration.seed}"
        )
    hub_id = None if recipe.model.folder else recipe.model.source
    return Provenance(
        recipe_text=context.recipe_text,
        plan=context.plan.as_dict(),
        source=hub_id or Path(recipe.model.source).name,
        method=recipe.method.kind,
        calibration=calibration,
        hub_id=hub_id,
    )


def _provenance_digest(context: Context) -> str:
    return digest(asdict(_provenance(context)))


def describe_source(source: dict[str, Any]) -> str:
    """A source of text in a few words."""
    rest = [str(value) for key, value in source.items() if key not in ("kind", "files") and value]
    files = source.get("files", [])
    rest += files if len(files) <= 3 else [f"{len(files)} files"]
    return f"{source['kind']} ({', '.join(rest)})" if rest else str(source["kind"])


def partial_folder(output: Path, kind: str) -> Path:
    """Where an export is written before it gets its name."""
    return output / f".{kind}.partial"


def old_folder(output: Path, kind: str) -> Path:
    """Where an earlier export is set aside while the new one takes its place."""
    return output / f".{kind}.old"


def replace_folder(partial: Path, final: Path, old: Path) -> None:
    """Put a finished folder in its place; what was there is removed last."""
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def folder_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path relative to it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in paths}


def export_is_intact(context: Context, step: Step, found: Summary) -> bool:
    """Whether the output folder still holds what a finished export wrote, of the same recipe.

    The fingerprint covers the weights; the recipe and the plan lie beside them.
    """
    if found.get("provenance") != _provenance_digest(context):
        return False
    written: dict[str, str] = found["files"]
    return folder_digests(context.output / step.params["kind"]) == written


def run_measure(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    """Perplexity and completion of a folder, loaded as its user would load it."""
    folder = context.folder
    if "artefact" in step.inputs:
        kind = context.plan.step(step.inputs["artefact"]).params["kind"]
        EXPORTERS[kind].load()  # lets transformers know our classes: no remote code is run
        folder = context.output / kind
    dtype = getattr(torch, step.params["dtype"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = open_model(folder, dtype, device=device)
    result: Summary = {}
    if "tokens" in step.inputs:
        windows = context.ids(step)
        measured = measure_perplexity(
            model, windows, on_progress=lambda done: progress(done, len(windows), "windows")
        )
        result["perplexity"] = {
            "value": measured.value,
            "loss": measured.loss,
            "tokens": measured.tokens,
            "window_losses": list(measured.window_losses),
        }
    if step.params["completion"]:
        prompt, tokens = step.params["completion"]["prompt"], step.params["completion"]["tokens"]
        result["completion"] = complete_with(model, prompt, tokens)
    return result


def perplexity_of(summary: Summary) -> Perplexity | None:
    """The measurement that a finished `measure` step holds, if it made one."""
    saved = summary.get("perplexity")
    if saved is None:
        return None
    return Perplexity(saved["value"], saved["loss"], saved["tokens"], tuple(saved["window_losses"]))
