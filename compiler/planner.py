# SPDX-License-Identifier: Apache-2.0
"""From a recipe and the facts of a model to a plan. Reads no weight."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from prunec.compiler.calibration import sources
from prunec.compiler.diagnostics import RecipeProblemError
from prunec.compiler.methods import METHODS
from prunec.compiler.model.layout import Layout, dense_layout
from prunec.compiler.plan import Cost, Plan
from prunec.compiler.plan_builder import PlanBuilder, Subject
from prunec.compiler.recipe import Export, Recipe, Source, TyrMethod
from prunec.compiler.search.budget import InfeasibleTargetError
from prunec.compiler.target import budget_of
from prunec.exporters import exporter_for


def make_plan(recipe: Recipe, subject: Subject, base: Path) -> Plan:
    """The steps of a build; RecipeProblemError if there are none. `base`: the recipe's folder."""
    steps = PlanBuilder(recipe, subject)
    _check_exports(recipe, subject)
    _tokens(steps, base)
    start = _start_layout(recipe, subject)
    finished = METHODS[recipe.method.kind](steps, start)
    for export in recipe.export:
        steps.add(
            f"export-{export.kind}",
            "export",
            f"write the smaller model as {export.kind}",
            export.model_dump() | {"layout": recipe.target.layout},
            {"layers": finished},
            Cost(
                disk_bytes=steps.estimate.weight_bytes(start),
                memory_bytes=steps.estimate.layer_bytes * 2,
            ),
        )
    if recipe.validation:
        _measure(steps)
    return Plan(tuple(steps.steps))


def _check_exports(recipe: Recipe, subject: Subject) -> None:
    """RecipeProblemError for an export that cannot be made of this model by this method."""
    for index, export in enumerate(recipe.export):
        key, exporter = f"export.{index}", exporter_for(export.model_dump())
        if problem := exporter.limits(subject.facts, recipe.target.layout):
            raise RecipeProblemError(key, f"{key} ({export.kind}): {problem}")
        if isinstance(recipe.method, TyrMethod) and recipe.method.faithful:
            if exporter.uneven_groups:
                continue
            raise RecipeProblemError(
                key,
                f"{key} is {export.kind}, which cannot express KV heads that serve different "
                "numbers of query heads, as method.faithful: true leaves them",
                hint="export hf, or remove method.faithful",
            )


def measured_export(recipe: Recipe) -> Export | None:
    """The export that measurements open: the first that transformers can; None without one."""
    settings = [(export, export.model_dump()) for export in recipe.export]
    opened = (export for export, each in settings if exporter_for(each).opens_in_transformers)
    return next(opened, None)


def _tokens(steps: PlanBuilder, base: Path) -> None:
    recipe = steps.recipe
    calibration, search = recipe.calibration, recipe.search
    if calibration:
        length, seed = calibration.sequence_length, calibration.seed
        windows = math.ceil(calibration.tokens / length)
        search_windows = math.ceil(search.tokens / length) if search else 0
        shared = search is not None and search.source in (None, calibration.source)
        total = windows + search_windows if shared else windows
        _add_tokens(
            steps,
            base,
            "calibration-tokens",
            "calibration.source",
            "text that the weights are fitted to",
            calibration.source,
            {"windows": windows, "length": length, "seed": seed, "skip": 0, "total": total},
        )
        if search:
            assert search.seed is not None  # settled with the recipe
            own = {"seed": search.seed, "skip": 0, "total": search_windows}
            rest = {"seed": seed, "skip": windows, "total": total}
            _add_tokens(
                steps,
                base,
                "search-tokens",
                "search.source",
                "text that layouts are compared on; calibration does not see it",
                search.source or calibration.source,
                {"windows": search_windows, "length": length} | (rest if shared else own),
            )
    if recipe.validation and (perplexity := recipe.validation.perplexity):
        windows = math.ceil(perplexity.tokens / perplexity.sequence_length)
        _add_tokens(
            steps,
            base,
            "evaluation-tokens",
            "validate.perplexity.source",
            "text that nothing was fitted to or chosen on",
            perplexity.source,
            {
                "windows": windows,
                "length": perplexity.sequence_length,
                "seed": 0,
                "skip": 0,
                "total": windows,
            },
        )


def _add_tokens(
    steps: PlanBuilder,
    base: Path,
    name: str,
    key: str,
    why: str,
    source: Source,
    draw: dict[str, int],
) -> None:
    data = source.model_dump()
    if "files" in data:
        # Relative, so that a plan reads the same wherever the project lies.
        data["files"] = [os.path.relpath(path, base) for path in data["files"]]
    try:
        text = sources.identity(data, base)
    except sources.SourceError as error:
        raise RecipeProblemError(key, error.message, error.hint) from None
    params = {"source": data, "text": text, "tokenizer": steps.identity, **draw}
    steps.add(
        name, "tokens", why, params, {}, Cost(disk_bytes=8 * draw["windows"] * draw["length"])
    )


def _start_layout(recipe: Recipe, subject: Subject) -> Layout:
    try:
        return budget_of(recipe, subject.facts).uniform_layout()
    except InfeasibleTargetError as error:
        key = f"target.{recipe.target.size}"
        raise RecipeProblemError(
            key,
            str(error),
            hint=f"change {key}, lower target.multiple_of, or use layout: per_layer",
        ) from None


def _measure(steps: PlanBuilder) -> None:
    checks = steps.recipe.validation
    assert checks is not None
    params: dict[str, Any] = steps.model | {
        "completion": checks.completion.model_dump() if checks.completion else None
    }
    inputs = {"tokens": "evaluation-tokens"} if checks.perplexity else {}
    forwards = Cost()
    if checks.perplexity:
        tokens = steps.count("evaluation-tokens")
        forwards = Cost(
            token_forwards=tokens,
            memory_bytes=steps.estimate.weight_bytes(dense_layout(steps.facts)),
        )
    steps.add("measure-dense", "measure", "judge the model as it was", params, inputs, forwards)
    measured = measured_export(steps.recipe)
    if measured is None:
        raise RecipeProblemError(
            "validate",
            "validate measures what transformers can open, and none of the exports is such",
            hint="add {kind: hf} to export",
        )
    steps.add(
        "measure-pruned",
        "measure",
        "judge the artefact, opened from disk",
        params,
        inputs | {"artefact": f"export-{measured.kind}"},
        forwards,
    )
