# SPDX-License-Identifier: Apache-2.0
"""From finished steps to a report: sizes, measurements, gates and what it all took."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from prunec.compiler.measured import (
    FinishedStep,
    footprints_of,
    parities_of,
    speeds_of,
    tasks_of,
    texts_of,
)
from prunec.compiler.model.headers import read_json
from prunec.compiler.model.layout import (
    Layout,
    dense_layout,
    kv_bytes_per_token,
    layout_from_plain,
    prunable_parameters,
    total_parameters,
)
from prunec.compiler.plan import Step
from prunec.compiler.plan_measures import opens
from prunec.compiler.plan_tokens import EVALUATION
from prunec.compiler.steps.context import SEARCHES, Context
from prunec.compiler.verdict import gates_of
from prunec.validators.artefact import inspect
from prunec.validators.hardware import hardware
from prunec.validators.results import (
    CompletionResult,
    Cost,
    Divergence,
    FinalistResult,
    ModelSize,
    RecoveryPoint,
    RecoveryResult,
    Report,
    SearchPoint,
    SearchResult,
    StepCost,
    SurrogateResult,
    TrialResult,
    TuningResult,
)

#: Kinds of steps whose result is an artefact.
_ARTEFACTS = ("export", "artefact")

_VERSIONED = ("torch", "transformers", "safetensors", "tokenizers", "numpy")


def report_of(
    context: Context, name: str, command: str, done: Mapping[str, FinishedStep]
) -> Report:
    """Everything that finished steps have found. `command`: what makes the report again."""
    recipe, facts = context.recipe, context.subject.facts
    made = {
        step.params["kind"]: step
        for step in context.plan.steps
        if step.kind in _ARTEFACTS and step.name in done
    }
    dense = dense_layout(facts)
    layout, pruned = _pruned(context, made, done)
    texts = texts_of(context.plan, done)
    report = Report(
        prunec_version=importlib.metadata.version("prunec"),
        recipe=name,
        method="given" if _given(made) else recipe.method.kind,
        seed=recipe.calibration.seed if recipe.calibration else None,
        dense=_size(context, dense, _dense_bytes(context, made)),
        pruned=pruned,
        dense_layers=[spec.as_dict() for spec in dense],
        layers=[spec.as_dict() for spec in layout],
        cost=Cost(
            token_forwards=sum(d.summary.get("token_forwards", 0) for d in done.values()),
            seconds=sum(d.seconds for d in done.values()),
            peak_rss_bytes=max(d.peak_rss_bytes for d in done.values()),
            steps=tuple(StepCost(step, d.seconds, d.reused) for step, d in done.items()),
        ),
        perplexity=texts.get(EVALUATION),
        elsewhere={
            step.removeprefix(f"{EVALUATION}-"): text
            for step, text in texts.items()
            if step != EVALUATION
        },
        tasks=tasks_of(context.plan, done),
        speeds=speeds_of(done),
        footprints=footprints_of(done),
        parities=parities_of(done),
        problems=tuple(
            dict.fromkeys(p for one in done.values() for p in one.summary.get("problems", ()))
        ),
        completion=_completion(context, done),
        search=_search(context, done),
        tuning=_tuning(done),
        recovery=_recovery(done),
        remote_code="hf" in made and _brings_code(context.artefact(made["hf"])),
        artefacts={kind: _place(context, step) for kind, step in made.items()},
        versions={"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in _VERSIONED},
        hardware=_hardware(done),
        recipe_text=context.recipe_text,
        command=command,
    )
    return replace(report, gates=gates_of(recipe.validation, report))


def _given(made: Mapping[str, Step]) -> bool:
    return any(step.kind == "artefact" for step in made.values())


def _pruned(
    context: Context, made: Mapping[str, Step], done: Mapping[str, FinishedStep]
) -> tuple[Layout, ModelSize]:
    """Layout and sizes of what was made; of a build that was given up, what it would have been."""
    facts = context.subject.facts
    value_bytes = getattr(torch, context.recipe.model.dtype).itemsize
    if not made:
        last = next(s for s in reversed(context.plan.steps) if s.kind in SEARCHES)
        layout = layout_from_plain(done[last.name].summary["layout"], facts.head_dim)
        return layout, _size(context, layout, total_parameters(facts, layout) * value_bytes)
    described = next(filter(opens, made.values()), None) or next(iter(made.values()))
    found = done[described.name].summary
    layout = layout_from_plain(found["layout"], facts.head_dim)
    return layout, ModelSize(
        parameters=found["parameters"],
        prunable_parameters=found["prunable_parameters"],
        bytes=found["weight_bytes"],
        kv_bytes_per_token=kv_bytes_per_token(facts, layout, value_bytes),
    )


def _dense_bytes(context: Context, made: Mapping[str, Step]) -> int:
    """Of the dense model's weights in the build's dtype; beside given artefacts, of its files."""
    if _given(made) and (weights := inspect(context.folder).weights):
        return weights.bytes
    facts = context.subject.facts
    parameters = total_parameters(facts, dense_layout(facts))
    return parameters * int(getattr(torch, context.recipe.model.dtype).itemsize)


def _hardware(done: Mapping[str, FinishedStep]) -> Mapping[str, str]:
    """The machine that measured speed, at that time; without such a measurement, this one."""
    machines = [one.summary["hardware"] for one in done.values() if "hardware" in one.summary]
    return machines[0] if machines else hardware()


def _brings_code(folder: Path) -> bool:
    """Whether transformers asks for `trust_remote_code` to open a folder."""
    return "auto_map" in read_json(folder / "config.json")


def _place(context: Context, made: Step) -> str:
    """An artefact's folder, relative to the build's where it lies in it."""
    folder = context.artefact(made)
    if folder.is_relative_to(context.output):
        return str(folder.relative_to(context.output))
    return str(folder)


def _size(context: Context, layout: Layout, weight_bytes: int) -> ModelSize:
    facts = context.subject.facts
    value_bytes = getattr(torch, context.recipe.model.dtype).itemsize
    return ModelSize(
        parameters=total_parameters(facts, layout),
        prunable_parameters=prunable_parameters(facts, layout),
        bytes=weight_bytes,
        kv_bytes_per_token=kv_bytes_per_token(facts, layout, value_bytes),
    )


def _completion(context: Context, done: Mapping[str, FinishedStep]) -> CompletionResult | None:
    validation = context.recipe.validation
    if validation is None or validation.completion is None or "measure-pruned" not in done:
        return None
    return CompletionResult(
        prompt=validation.completion.prompt,
        dense=done["measure-dense"].summary["completion"],
        pruned=done["measure-pruned"].summary["completion"],
    )


def _search(context: Context, done: Mapping[str, FinishedStep]) -> SearchResult | None:
    searches = [done[step.name].summary for step in context.plan.steps if step.kind in SEARCHES]
    if not searches:
        return None
    points, surrogates, spent = [], [], 0
    for number, found in enumerate(searches, start=1):
        for line in found["history"]:
            points.append(
                SearchPoint(
                    number, line["generation"], spent + line["token_forwards"], line["divergence"]
                )
            )
        spent += found["token_forwards"]
        if guessed := found.get("surrogate"):
            surrogates.append(
                SurrogateResult(
                    number,
                    guessed["rank_correlation"],
                    guessed["probes"],
                    guessed.get("fell_back"),
                )
            )
    first, last = searches[0]["history"][0], searches[-1]["history"][-1]
    return SearchResult(
        Divergence(first["divergence"], last["divergence"]), tuple(points), tuple(surrogates)
    )


def _tuning(done: Mapping[str, FinishedStep]) -> TuningResult | None:
    """How settings were found; None where none were sought."""
    for finished in done.values():
        if saved := finished.summary.get("tuning"):
            trials = tuple(TrialResult(**trial) for trial in saved["trials"])
            rest = {name: value for name, value in saved.items() if name != "ranked"}
            finalists, best = finalists_of(saved["ranked"], done)
            return TuningResult(**rest | {"trials": trials, "finalists": finalists, "best": best})
    return None


def finalists_of(
    ranked: list[int], done: Mapping[str, FinishedStep]
) -> tuple[tuple[FinalistResult, ...], int]:
    """Trials that were pruned in full, and the number of the trial that was taken.

    ranked: the numbers of the best trials, the best first
    """
    judged = next((d.summary for d in done.values() if "values" in d.summary), None)
    if judged is None:
        return (), ranked[0]
    pairs = zip(ranked, judged["values"], strict=False)
    return tuple(FinalistResult(*pair) for pair in pairs), ranked[judged["best"]]


def _recovery(done: Mapping[str, FinishedStep]) -> RecoveryResult | None:
    """How the pruned model was trained back; None where it was not."""
    for finished in done.values():
        if saved := finished.summary.get("recovery"):
            points = tuple(RecoveryPoint(**point) for point in saved["points"])
            return RecoveryResult(**saved | {"points": points})
    return None
