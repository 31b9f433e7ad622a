# SPDX-License-Identifier: Apache-2.0
"""Steps that write models: an export into the output folder, the dense model to compare with."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from prunec.compiler.layer_store import load_cut
from prunec.compiler.model.layout import dense_layout, layout_from_plain, tensor_shapes
from prunec.compiler.output_folder import old_folder, partial_folder
from prunec.compiler.plan import Step, digest
from prunec.compiler.plan_texts import plain_source
from prunec.compiler.steps.context import Context, Progress, Summary
from prunec.compiler.store import Entry, LostResultError, file_sha256, sync_tree, write_text
from prunec.exporters import exporter_for
from prunec.exporters.artefact import Provenance
from prunec.exporters.hf import model_config
from prunec.validators.files import utf8, write_files
from prunec.validators.manifest import CARD, LISTING

#: What the store calls the hashes of an export's model cards.
_CARDS = "cards"


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
        pruned_tensors(context, layers, progress),
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
        if path != CARD
    }
    (folder / LISTING).parent.mkdir(exist_ok=True)
    write_text(folder / LISTING, json.dumps({"files": files}, indent=2) + "\n")


def pruned_tensors(
    context: Context, layers: Entry, progress: Progress
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the pruned model by its full name, one layer in memory at a time."""
    facts, checkpoint = context.subject.facts, context.decoder.checkpoint
    family = facts.family
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


def pruned_model(context: Context, step: Step) -> Any:
    """The model that an export writes, built in memory from the store: a transformers model of the
    recipe's precision, held as float32."""
    facts, layers = context.subject.facts, context.entry(step, "layers")
    layout = layout_from_plain(context.found(step, "layers")["layout"], facts.head_dim)
    dtype = getattr(torch, context.recipe.model.dtype)
    described = model_config(facts, layout, step.params["layout"], dtype)
    config = AutoConfig.for_model(**described)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    held = model.state_dict()
    for name, tensor in pruned_tensors(context, layers, lambda *_: None):
        held.pop(name).copy_(tensor.to(dtype))  # one at a time: two models would not fit
    assert set(held) <= {facts.family.head}, held.keys()  # tied to the embedding
    model.tie_weights()
    if getattr(config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")  # the only kernels that cap scores
    return model.eval()


def write_card(context: Context, step: Step, section: Mapping[str, str]) -> bool:
    """Write the model card of a finished export anew, with a section of what was measured; False
    where somebody has edited it: then it stays as it is."""
    folder, entry = context.artefact(step), context.store.entry(step.fingerprint)
    if card_is_edited(context, step):
        return False
    exporter, found = exporter_for(step.params), entry.found()
    card = exporter.load().card(
        context.folder,
        context.subject.facts,
        layout_from_plain(found["layout"], context.subject.facts.head_dim),
        step.params["layout"],
        getattr(torch, context.recipe.model.dtype),
        provenance=_provenance(context),
        **{name: step.params[name] for name in exporter.options},
    )
    data = utf8(card.render(section))
    # Told to the store before it is written: a build that is killed in between still knows it.
    ours = [*_cards(entry), hashlib.sha256(data).hexdigest()]
    entry.save_json(_CARDS, {"sha256": sorted(set(ours))})
    write_files(folder, {CARD: data})
    return True


def card_is_edited(context: Context, step: Step) -> bool:
    """Whether an export's model card is there, and none that was ever written to it."""
    card = context.artefact(step) / CARD
    known = _cards(context.store.entry(step.fingerprint))
    return card.is_file() and file_sha256(card) not in known


def _cards(entry: Entry) -> list[str]:
    """SHA-256 of all model cards that were written to an export: the first, which knows of no
    verdict, and those that do."""
    saved = entry.load_json(_CARDS) or {"sha256": []}
    return [entry.found()["files"][CARD], *saved["sha256"]]


def run_dense_export(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    """The dense model in a runtime's own form, kept in the store."""
    facts, params = context.subject.facts, step.params
    exporter = exporter_for(params)
    writer = exporter.load()
    final = entry.folder / params["kind"]
    partial = partial_folder(entry.folder, params["kind"])
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    layout = dense_layout(facts)
    checkpoint = context.decoder.checkpoint
    names = tensor_shapes(facts, layout)
    writer.export(
        partial,
        context.folder,
        facts,
        layout,
        "uniform",
        ((name, checkpoint.tensor(name)) for name in names),
        getattr(torch, params["dtype"]),
        provenance=_provenance(context),
        **{name: params[name] for name in exporter.options},
    )
    written = writer.verify(partial, layout, facts)
    sync_tree(partial)
    replace_folder(partial, final, old_folder(entry.folder, params["kind"]))
    return {"parameters": written.parameters, "weight_bytes": written.weight_bytes}


def _provenance(context: Context) -> Provenance:
    recipe = context.recipe
    hub_id = None if recipe.model.folder else recipe.model.source
    return Provenance(
        recipe_text=context.recipe_text,
        plan=context.plan.as_dict(),
        source=hub_id or Path(recipe.model.source).name,
        method=recipe.method.kind,
        calibration=_calibration(context),
        hub_id=hub_id,
        commit=context.subject.commit,
        recovery=_recovery(context),
    )


def _calibration(context: Context) -> str | None:
    """Which text the weights were fitted to, in a phrase; None where none was read."""
    calibration = context.recipe.calibration
    if calibration is None:
        return None
    source = describe_source(plain_source(calibration.source, context.base))
    drawn = next((s for s in context.plan.steps if s.name == "calibration-tokens"), None)
    windows = math.ceil(calibration.tokens / calibration.sequence_length)
    tokens = f"{windows * calibration.sequence_length:,} tokens"
    if drawn is None or drawn.kind == "chosen":  # a tuner may have found fewer to be best
        tokens = f"at most {tokens}, which the tuner chose"
    return f"{source}, {tokens}, seed {calibration.seed}"


def _recovery(context: Context) -> str | None:
    """How the weights were trained back, in a phrase; None where they are as they were pruned."""
    recover = context.recipe.recover
    steps = [step for step in context.plan.steps if step.kind == "recover"]
    if recover is None or recover.source is None or not steps:
        return None
    found = context.store.entry(steps[0].fingerprint).found()["recovery"]
    if not found["kept"]:
        return None
    source = describe_source(plain_source(recover.source, context.base))
    by = "low-rank adapters" if recover.kind == "lora" else "its layers one by one"
    return f"trained back by {by} on {source}, {found['tokens']:,} tokens, seed {recover.seed}"


def _provenance_digest(context: Context) -> str:
    return digest(asdict(_provenance(context)))


def describe_source(source: dict[str, Any]) -> str:
    """A source of text in a few words."""
    if source["kind"] == "self":
        return f"the dense model's own (temperature {source['temperature']:g})"
    if source["kind"] == "mix":
        parts = source["parts"].values()
        whole = sum(part["weight"] for part in parts)
        shares = (f"{p['weight'] / whole:.1%} {describe_source(p['source'])}" for p in parts)
        return f"mix of {', '.join(shares)}"
    told = ("kind", "files", "holdout", "join")
    rest = [str(value) for key, value in source.items() if key not in told and value]
    files = source.get("files", [])
    rest += files if len(files) <= 3 else [f"{len(files)} files"]
    rest += [f"{source['holdout']:.3g} held out"] if "holdout" in source else []
    rest += [f"joined by {json.dumps(source['join'])}"] if "join" in source else []
    return f"{source['kind']} ({', '.join(rest)})" if rest else str(source["kind"])


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


def export_is_of(context: Context, found: Summary) -> bool:
    """Whether a finished export is of this very recipe. The fingerprint covers the weights; the
    recipe and the plan lie beside them."""
    return bool(found.get("provenance") == _provenance_digest(context))


def export_is_intact(context: Context, step: Step, found: Summary) -> bool:
    """Whether the output folder still holds what a finished export wrote, of the same recipe."""
    if not export_is_of(context, found):
        return False
    written: dict[str, str] = found["files"]
    there = folder_digests(context.output / step.params["kind"])
    # What was measured is told in the card, later.
    return there | {CARD: ""} == written | {CARD: ""} if CARD in there else there == written
