# SPDX-License-Identifier: Apache-2.0
"""Carry out a plan: each step once, its result from the store where there is one; then the report.

The output folder looks finished only when it is: `manifest.json` is removed before anything
changes and written last.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from prunec.compiler.artefacts import (
    describe_source,
    export_is_intact,
    folder_digests,
    old_folder,
    partial_folder,
    perplexity_of,
    run_export,
    run_measure,
)
from prunec.compiler.calibration.sources import SourceError
from prunec.compiler.diagnostics import BuildError
from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.layout import (
    LayerSpec,
    Layout,
    dense_layout,
    kv_bytes_per_token,
    prunable_parameters,
    total_parameters,
)
from prunec.compiler.plan import Step
from prunec.compiler.progress import Narrator
from prunec.compiler.steps import RUNNERS, Context, Progress, Summary
from prunec.compiler.store import Entry, LostResultError, write_text
from prunec.exporters import EXPORTERS
from prunec.validators.errors import ValidationError
from prunec.validators.gates import Gate, judge_max_ratio
from prunec.validators.perplexity import ratio_interval
from prunec.validators.report import append_step_summary, write_report
from prunec.validators.results import (
    CompletionResult,
    Cost,
    Divergence,
    ModelSize,
    PerplexityResult,
    Report,
    SearchPoint,
    SearchResult,
    StepCost,
)

_RUNNERS: Mapping[str, Callable[[Context, Step, Entry, Progress], Summary]] = {
    **RUNNERS,
    "export": run_export,
    "measure": run_measure,
}

_VERSIONED = ("torch", "transformers", "safetensors", "tokenizers", "numpy")

MANIFEST = "manifest.json"

_GO_ON = "finished steps are kept; put it right and run the same command again"


@dataclass(frozen=True)
class _Done:
    """A finished step: what it found, what it took, whether that was in this run."""

    summary: Summary
    seconds: float
    peak_rss_bytes: int
    reused: bool


def build(context: Context, name: str, narrator: Narrator, *, fresh: bool = False) -> Report:
    """Run what is missing of a plan and write the output folder. Raises BuildError.

    `name` is the recipe's; `fresh` forgets what earlier builds have stored. One build at a time
    works on an output folder.
    """
    try:
        context.output.mkdir(parents=True, exist_ok=True)
        with _locked(context.output):
            _check_ours(context)
            _remove_leftovers(context.output)
            if fresh:
                context.store.clear()
            done = _run_all(context, narrator)
            report = _report(context, name, done)
            _publish(context, name, report)
        append_step_summary(report)
    except OSError as error:
        raise BuildError(_os_sentence(error), hint=_GO_ON) from error
    return report


def _locked(output: Path) -> FileLock:
    """A lock on the output folder, which is held."""
    lock = FileLock(output / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BuildError(
            f"another build is writing to {output}",
            hint="wait for it, or choose another --output",
        ) from None
    return lock


def _check_ours(context: Context) -> None:
    """Exports replace folders, but never one in a place where no build has been."""
    if context.store.root.exists() or (context.output / MANIFEST).exists():
        return
    for export in context.recipe.export:
        folder = context.output / export.kind
        if folder.exists():
            raise BuildError(
                f"{folder} exists, and is not of a build; it would be replaced",
                hint="choose another --output, or move it away",
            )


def _run_all(context: Context, narrator: Narrator) -> dict[str, _Done]:
    """Every step in order; once more from the start where an earlier result turns out damaged."""
    remade: set[Path] = set()
    while True:
        done: dict[str, _Done] = {}
        try:
            for number, step in enumerate(context.plan.steps, start=1):
                label = f"[{number}/{len(context.plan.steps)}] {step.name}"
                done[step.name] = _run(context, step, narrator, label)
            return done
        except LostResultError as lost:
            if lost.entry.folder in remade:
                raise BuildError(str(lost), hint="check the disk; --fresh starts over") from None
            remade.add(lost.entry.folder)
            lost.entry.reopen()
            narrator.say(f"{lost}; making it again")


def _remove_leftovers(output: Path) -> None:
    """What a killed build was writing, and what it had set aside for it."""
    for kind in EXPORTERS:
        shutil.rmtree(partial_folder(output, kind), ignore_errors=True)
        shutil.rmtree(old_folder(output, kind), ignore_errors=True)


def _run(context: Context, step: Step, narrator: Narrator, label: str) -> _Done:
    entry = context.store.entry(step.fingerprint)
    saved = entry.record()
    if saved and (step.kind != "export" or export_is_intact(context, step, saved["found"])):
        narrator.say(f"{label}: reused")
        return _Done(saved["found"], saved["seconds"], saved["peak_rss_bytes"], reused=True)
    if step.kind == "export":
        (context.output / MANIFEST).unlink(missing_ok=True)
    began = time.monotonic()
    try:
        with narrator.step(label) as progress:
            found = _RUNNERS[step.kind](context, step, entry, progress)
        done = _Done(found, time.monotonic() - began, _peak_rss_bytes(), reused=False)
        entry.finish(
            {"found": found, "seconds": done.seconds, "peak_rss_bytes": done.peak_rss_bytes}
        )
    except (ModelError, SourceError, ValidationError) as error:
        raise BuildError(f"{step.name}: {error.message}", hint=error.hint) from error
    except torch.OutOfMemoryError as error:
        raise BuildError(
            f"{step.name}: the device is out of memory",
            hint="lower calibration.tokens or calibration.sequence_length",
        ) from error
    except MemoryError as error:
        raise BuildError(
            f"{step.name}: out of memory",
            hint="lower calibration.tokens or search.tokens; finished steps are kept",
        ) from error
    except SafetensorError as error:
        reason = str(error).rpartition("I/O error: ")[2]
        raise BuildError(f"{step.name}: tensors are not written: {reason}", hint=_GO_ON) from error
    except OSError as error:
        raise BuildError(f"{step.name}: {_os_sentence(error)}", hint=_GO_ON) from error
    narrator.say(f"{label}: {_headline(step, found)} ({done.seconds:.1f} s)")
    return done


def _os_sentence(error: OSError) -> str:
    """What the system says, and of which file."""
    sentence = error.strerror or str(error)
    return f"{sentence}: {error.filename}" if error.filename else sentence


def _headline(step: Step, found: Summary) -> str:
    """A step's result in one line."""
    if step.kind == "tokens":
        return f"{found['tokens']:,} tokens of {describe_source(step.params['source'])}"
    if step.kind == "search":
        first, last = found["history"][0], found["history"][-1]
        return (
            f"divergence {first['divergence']:.4f} → {last['divergence']:.4f} nats/token in "
            f"{last['generation']} generations, {found['token_forwards']:,} token-forwards"
        )
    if step.kind in ("supernet", "resolve"):
        return f"{len(found['layout'])} layers"
    if step.kind == "export":
        return f"{found['parameters']:,} parameters, {found['weight_bytes']:,} bytes of weights"
    if step.kind == "measure" and found.get("perplexity"):
        return f"perplexity {found['perplexity']['value']:.3f}"
    return step.why


def _peak_rss_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# --- report -------------------------------------------------------------------------------------


def _report(context: Context, name: str, done: Mapping[str, _Done]) -> Report:
    recipe, facts = context.recipe, context.subject.facts
    exported = done[f"export-{recipe.export[0].kind}"].summary
    layout = tuple(LayerSpec(q, kv, facts.head_dim, ffn) for q, kv, ffn in exported["layout"])
    dense = dense_layout(facts)
    value_bytes = getattr(torch, recipe.model.dtype).itemsize
    perplexity = _perplexity(context, done)
    gates: list[Gate] = []
    if recipe.validation and recipe.validation.perplexity:
        max_ratio = recipe.validation.perplexity.max_ratio
        if max_ratio is not None:
            gates.append(judge_max_ratio(perplexity.ratio if perplexity else None, max_ratio))
    return Report(
        prunec_version=importlib.metadata.version("prunec"),
        recipe=name,
        method=recipe.method.kind,
        seed=recipe.calibration.seed if recipe.calibration else 0,
        dense=_size(context, dense, total_parameters(facts, dense) * value_bytes),
        pruned=ModelSize(
            parameters=exported["parameters"],
            prunable_parameters=exported["prunable_parameters"],
            bytes=exported["weight_bytes"],
            kv_bytes_per_token=kv_bytes_per_token(facts, layout, value_bytes),
        ),
        dense_layers=[spec.as_dict() for spec in dense],
        layers=[spec.as_dict() for spec in layout],
        cost=Cost(
            token_forwards=sum(d.summary.get("token_forwards", 0) for d in done.values()),
            seconds=sum(d.seconds for d in done.values()),
            peak_rss_bytes=max(d.peak_rss_bytes for d in done.values()),
            steps=tuple(StepCost(step, d.seconds, d.reused) for step, d in done.items()),
        ),
        gates=tuple(gates),
        perplexity=perplexity,
        completion=_completion(context, done),
        search=_search(context, done),
        remote_code=recipe.target.layout == "per_layer",
        artefacts={export.kind: export.kind for export in recipe.export},
        versions={"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in _VERSIONED},
    )


def _size(context: Context, layout: Layout, weight_bytes: int) -> ModelSize:
    facts = context.subject.facts
    value_bytes = getattr(torch, context.recipe.model.dtype).itemsize
    return ModelSize(
        parameters=total_parameters(facts, layout),
        prunable_parameters=prunable_parameters(facts, layout),
        bytes=weight_bytes,
        kv_bytes_per_token=kv_bytes_per_token(facts, layout, value_bytes),
    )


def _perplexity(context: Context, done: Mapping[str, _Done]) -> PerplexityResult | None:
    if "measure-dense" not in done:
        return None
    dense = perplexity_of(done["measure-dense"].summary)
    pruned = perplexity_of(done["measure-pruned"].summary)
    if dense is None or pruned is None:
        return None
    ratio = ratio_interval(dense, pruned)
    source = context.plan.step("evaluation-tokens").params["source"]
    return PerplexityResult(
        dense=dense.value,
        pruned=pruned.value,
        ratio=ratio.value,
        ratio_interval=(ratio.low, ratio.high),
        tokens=dense.tokens,
        source=describe_source(source),
    )


def _completion(context: Context, done: Mapping[str, _Done]) -> CompletionResult | None:
    validation = context.recipe.validation
    if validation is None or validation.completion is None:
        return None
    return CompletionResult(
        prompt=validation.completion.prompt,
        dense=done["measure-dense"].summary["completion"],
        pruned=done["measure-pruned"].summary["completion"],
    )


def _search(context: Context, done: Mapping[str, _Done]) -> SearchResult | None:
    searches = [done[step.name].summary for step in context.plan.steps if step.kind == "search"]
    if not searches:
        return None
    points, spent = [], 0
    for number, found in enumerate(searches, start=1):
        for line in found["history"]:
            points.append(
                SearchPoint(
                    number, line["generation"], spent + line["token_forwards"], line["divergence"]
                )
            )
        spent += found["token_forwards"]
    first, last = searches[0]["history"][0], searches[-1]["history"][-1]
    return SearchResult(Divergence(first["divergence"], last["divergence"]), tuple(points))


def _publish(context: Context, name: str, report: Report) -> None:
    """Write the report, then the manifest of everything."""
    output = context.output
    (output / MANIFEST).unlink(missing_ok=True)
    (output / "report").mkdir(exist_ok=True)
    write_report(report, output / "report")
    folders = [*report.artefacts.values(), "report"]
    files: dict[str, Any] = {
        f"{folder}/{path}": {
            "sha256": sha256,
            "bytes": (output / folder / path).stat().st_size,
        }
        for folder in folders
        for path, sha256 in folder_digests(output / folder).items()
    }
    manifest = {
        "fingerprint": context.plan.fingerprint,
        "recipe": name,
        "exit_code": 0 if report.passed else 1,
        "versions": {"prunec": report.prunec_version, **report.versions},
        "steps": {step.name: step.fingerprint for step in context.plan.steps},
        "files": files,
    }
    write_text(output / MANIFEST, json.dumps(manifest, indent=2) + "\n")
