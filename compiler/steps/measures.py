# SPDX-License-Identifier: Apache-2.0
"""Judging what lies on disk: each step hands folders to a validator and keeps what it found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from prunec import recipes
from prunec.compiler.model.headers import shard_names
from prunec.compiler.model.layout import dense_layout, total_parameters
from prunec.compiler.peak import rss_bytes
from prunec.compiler.plan import Step
from prunec.compiler.plan_measures import DENSE_ONNX, opens
from prunec.compiler.recipe import TasksCheck
from prunec.compiler.steps.context import Context, Progress, Summary
from prunec.compiler.steps.export import pruned_model
from prunec.compiler.store import Entry
from prunec.exporters import EXPORTERS
from prunec.exporters.code import brings_only_our_code
from prunec.validators import footprint, parity, speed, tasks
from prunec.validators.artefact import inspect
from prunec.validators.completion import complete_with
from prunec.validators.divergence import Reference
from prunec.validators.hardware import hardware
from prunec.validators.loading import LoadedModel, open_model
from prunec.validators.perplexity import TextMeasurement, measure_text
from prunec.validators.report import LM_EVAL
from prunec.validators.tokenizers import tokenizer_difference

#: Windows of every text that an artefact's tokenizer has to read as the dense model's does.
_READ = 8


def artefact_folder(context: Context, step: Step, role: str = "artefact") -> Path:
    """The folder that plays a role among a step's inputs: written by this build, or given."""
    made = context.plan.step(step.inputs[role])
    if made.kind == "dense-export":
        return context.store.entry(made.fingerprint).folder / str(made.params["kind"])
    return context.artefact(made)


def run_artefact(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    """What an artefact holds that was given, not written."""
    found: Summary = {"layout": step.params["layout"], "problems": step.params["problems"]}
    if step.params["kind"] == "onnx":
        return found  # another artefact beside it tells the sizes
    weights = inspect(context.artefact(step)).weights
    assert weights is not None  # looked at before there was a plan
    return found | {
        "parameters": weights.parameters,
        "prunable_parameters": weights.prunable_parameters,
        "weight_bytes": weights.bytes,
    }


def run_measure(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    """Perplexity, divergence and completion of a folder, loaded as its user would load it."""
    folder = context.folder
    if "artefact" in step.inputs:
        EXPORTERS["hf"].load()  # lets transformers know our classes: no remote code is run
        folder = artefact_folder(context, step)
    dtype = getattr(torch, step.params["dtype"])
    model = open_model(folder, dtype, device=context.device, memory=_memory(context))
    result: Summary = {"texts": {}}
    for role in step.inputs:
        if role in ("artefact", "dense"):
            continue
        windows, reference = context.ids(step, role), None
        if "dense" in step.inputs:
            saved, _ = context.entry(step, "dense").require_tensors(f"reference-{role}")
            reference = Reference.from_tensors(saved)
        undiverged = _incomparable(reference, model, folder)
        if undiverged:
            reference = None
        measured = measure_text(
            model,
            windows,
            reference=reference,
            keep=None if "dense" in step.inputs else step.params["top_k"],
            given=max(1, len(context.found(step, role)["prefix"])),
            on_progress=_counting(progress, len(windows)),
        )
        if measured.reference:
            entry.save_tensors(f"reference-{role}", measured.reference.as_tensors())
        result["texts"][role] = _plain(measured) | {"undiverged": undiverged}
        if "artefact" in step.inputs:
            own, texts = model.tokenizer(), context.tokenizer.batch_decode(windows[:_READ])
            difference = tokenizer_difference(context.tokenizer, own, texts)
            result["problems"] = [difference] if difference else []
    if asked := step.params["completion"]:
        result["completion"] = complete_with(model, asked["prompt"], asked["tokens"])
    return result


def _incomparable(reference: Reference | None, model: LoadedModel, folder: Path) -> str | None:
    """Why a model's distributions cannot be held against the dense one's; None where they can."""
    if reference is None or reference.vocab_size == model.vocab_size:
        return None
    return (
        f"{folder.name} has {model.vocab_size:,} tokens and the dense model "
        f"{reference.vocab_size:,}, so that their distributions cannot be compared"
    )


def _counting(progress: Progress, windows: int) -> Callable[[int], None]:
    return lambda done: progress(done, windows, "windows")


def _plain(measured: TextMeasurement) -> dict[str, Any]:
    return asdict(measured.perplexity) | {"window_divergences": measured.window_divergences}


def run_parity(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    """Every artefact in its runtime against the model in memory."""
    prompts = context.ids(step)[: step.params["prompts"]]
    length = min(prompts.shape[1], 64)
    prompts = prompts[:, :length]
    made = {role: context.plan.step(name) for role, name in step.inputs.items() if role != "tokens"}
    reference = parity.reference_answers(
        _in_memory(context, made), prompts, step.params["new_tokens"]
    )
    results = []
    for number, kind in enumerate(made):
        progress(number, len(made), f"artefacts, now {kind}")
        folder = artefact_folder(context, step, kind)
        trusted = brings_only_our_code(folder)
        found = parity.measure_parity(kind, folder, reference, trust_remote_code=trusted)
        results.append(asdict(found))
    return {"parities": results}


def _in_memory(context: Context, made: Mapping[str, Step]) -> LoadedModel:
    """The model that this build's artefacts were written from; of given artefacts, the first."""
    first = next(iter(made.values()))
    if first.kind == "export":
        cpu = torch.device("cpu")
        return LoadedModel(context.folder, pruned_model(context, first), cpu, False)
    EXPORTERS["hf"].load()
    opened = next(filter(opens, made.values()))  # planned so
    return open_model(context.artefact(opened), torch.float32)


def task_settings(
    asked: TasksCheck, params: Mapping[str, Any], *, trust_remote_code: bool = False
) -> tasks.TaskSettings:
    """A step's settings as lm-eval is given them: with the tasks that ship with prunec."""
    return tasks.TaskSettings(
        names=tuple(params["names"]),
        include_path=(recipes.folder() / "tasks", *asked.include),
        metrics=params["metrics"],
        few_shot=params["few_shot"],
        limit=params["limit"],
        seed=params["seed"],
        chat_template=params["chat_template"],
        batch_size=params["batch_size"],
        dtype=params["dtype"],
        max_length=params["max_length"],
        tensor_parallel=params.get("tensor_parallel", 1),
        trust_remote_code=trust_remote_code,
    )


def run_tasks(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    """lm-eval's answers of one model by one backend; its own files stay beside ours."""
    asked = context.recipe.validation
    assert asked is not None and asked.tasks is not None
    folder = artefact_folder(context, step) if "artefact" in step.inputs else context.folder
    trusted = brings_only_our_code(folder)
    scores = tasks.evaluate(
        folder,
        step.params["backend"],
        task_settings(asked.tasks, step.params, trust_remote_code=trusted),
        entry.folder / LM_EVAL,
        on_progress=lambda done, of: progress(done, of, "requests"),
    )
    return {"scores": scores.as_dict()}


def run_speed(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    """Both models in one runtime, taking turns."""
    params, machine = step.params, hardware()
    dense = artefact_folder(context, step, "dense") if "dense" in step.inputs else context.folder
    pruned = artefact_folder(context, step)
    settings = speed.SpeedSettings(
        batch_sizes=tuple(params["batch_sizes"]),
        prompt_tokens=params["prompt_tokens"],
        new_tokens=params["new_tokens"],
        pairs=params["pairs"],
        dtype=params["dtype"],
        seed=0,
        tensor_parallel=params.get("tensor_parallel", 1),
        trust_remote_code=brings_only_our_code(dense) and brings_only_our_code(pruned),
    )
    results = speed.measure_speed(
        params["runtime"],
        dense,
        pruned,
        settings,
        on_progress=lambda done, of: progress(done, of, "turns"),
    )
    return {"speeds": [asdict(result) for result in results], "hardware": machine}


def run_footprint(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    """Bytes of every artefact and of the dense model in its form, on disk and once loaded."""
    found: list[dict[str, Any]] = []
    kinds = [role for role in step.inputs if role != DENSE_ONNX]
    for number, kind in enumerate(kinds):
        progress(number, len(kinds), f"artefacts, now {kind}")
        dense = context.folder
        if kind == "onnx":
            dense = artefact_folder(context, step, DENSE_ONNX)
        folder = artefact_folder(context, step, kind)
        trusted = brings_only_our_code(dense) and brings_only_our_code(folder)
        written = context.plan.step(step.inputs[kind]).kind == "export" and kind != "onnx"
        measured = footprint.measure_footprint(
            kind,
            folder,
            dense,
            dense_file_bytes=_bytes_if_written(context) if written else None,
            dtype=step.params["dtype"] if written else None,
            trust_remote_code=trusted,
        )
        found.append(asdict(measured))
    return {"footprints": found}


def _bytes_if_written(context: Context) -> int:
    """Bytes of the dense model's files if it were written in the build's dtype."""
    facts, folder = context.subject.facts, context.folder
    weights = total_parameters(facts, dense_layout(facts))
    others = footprint.file_bytes(folder) - sum(
        (folder / name).stat().st_size for name in shard_names(folder)
    )
    return others + weights * int(getattr(torch, context.recipe.model.dtype).itemsize)


def _memory(context: Context) -> int | None:
    """Bytes that a model and what is computed with it may take on its device; None: no limit."""
    limits = context.limits
    if limits is None:
        return None
    if limits.on_gpu:
        return limits.gpu_memory
    return None if limits.memory is None else max(0, limits.memory - rss_bytes())
