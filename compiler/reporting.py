# SPDX-License-Identifier: Apache-2.0
"""From finished steps to a report: sizes, measurements, gates and what it all took."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from prunec.compiler.artefacts import describe_source, perplexity_of
from prunec.compiler.model.layout import (
    Layout,
    dense_layout,
    kv_bytes_per_token,
    layout_from_plain,
    prunable_parameters,
    total_parameters,
)
from prunec.compiler.planner import measured_export
from prunec.compiler.steps.context import Context, Summary
from prunec.validators.gates import Gate, judge_max_ratio
from prunec.validators.perplexity import ratio_interval
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
    SurrogateResult,
)

_VERSIONED = ("torch", "transformers", "safetensors", "tokenizers", "numpy")


@dataclass(frozen=True)
class FinishedStep:
    """A finished step: what it found, what it took, whether that was in this run."""

    summary: Summary
    seconds: float
    peak_rss_bytes: int
    reused: bool


def report_of(context: Context, name: str, done: Mapping[str, FinishedStep]) -> Report:
    recipe, facts = context.recipe, context.subject.facts
    described = measured_export(recipe) or recipe.export[0]
    exported = done[f"export-{described.kind}"].summary
    layout = layout_from_plain(exported["layout"], facts.head_dim)
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


def _perplexity(context: Context, done: Mapping[str, FinishedStep]) -> PerplexityResult | None:
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


def _completion(context: Context, done: Mapping[str, FinishedStep]) -> CompletionResult | None:
    validation = context.recipe.validation
    if validation is None or validation.completion is None:
        return None
    return CompletionResult(
        prompt=validation.completion.prompt,
        dense=done["measure-dense"].summary["completion"],
        pruned=done["measure-pruned"].summary["completion"],
    )


def _search(context: Context, done: Mapping[str, FinishedStep]) -> SearchResult | None:
    kinds = ("search", "published-search")
    searches = [done[step.name].summary for step in context.plan.steps if step.kind in kinds]
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
