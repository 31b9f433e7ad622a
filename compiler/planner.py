# SPDX-License-Identifier: Apache-2.0
"""From a recipe and the facts of a model to a plan. Reads no weight."""

from __future__ import annotations

from pathlib import Path

from prunec.compiler.diagnostics import RecipeProblemError
from prunec.compiler.estimates_artefact import export as written
from prunec.compiler.estimates_artefact import graph
from prunec.compiler.methods import METHODS
from prunec.compiler.model.layout import Layout
from prunec.compiler.plan import Plan
from prunec.compiler.plan_builder import PlanBuilder, Subject
from prunec.compiler.plan_measures import add_measurements
from prunec.compiler.plan_recovery import add_recovery
from prunec.compiler.plan_tokens import add_evaluation_tokens, add_fitting_tokens
from prunec.compiler.recipe import OnnxExport, Recipe, TyrMethod
from prunec.compiler.search.budget import InfeasibleTargetError
from prunec.compiler.target import budget_of
from prunec.exporters import exporter_for


def make_plan(recipe: Recipe, subject: Subject, base: Path) -> Plan:
    """The steps of a build; RecipeProblemError if there are none. `base`: the recipe's folder."""
    steps = PlanBuilder(recipe, subject)
    _check_exports(recipe, subject)
    add_fitting_tokens(steps, base)
    if recipe.validation:
        add_evaluation_tokens(steps, recipe.validation, base)
    start = _start_layout(recipe, subject)
    _warn_of_coarse_widths(steps)
    finished = METHODS[recipe.method.kind](steps, start)
    finished = add_recovery(steps, start, finished)
    for export in recipe.export:
        steps.add(
            f"export-{export.kind}",
            "export",
            f"write the smaller model as {export.kind}",
            export.model_dump() | {"layout": recipe.target.layout},
            {"layers": finished},
            graph(steps.sizes, start, export.precision)
            if isinstance(export, OnnxExport)
            else written(steps.sizes, start),
        )
    if recipe.validation:
        artefacts = {str(export.kind): f"export-{export.kind}" for export in recipe.export}
        add_measurements(steps, recipe.validation, artefacts, steps.sizes.weight_bytes(start))
    return steps.plan


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


def _warn_of_coarse_widths(steps: PlanBuilder) -> None:
    """Says where an MLP can only stay whole or go whole."""
    recipe, facts = steps.recipe, steps.facts
    budget = budget_of(recipe, facts)
    if budget.mlp_is_free or set(budget.widths) - {0, facts.ffn}:
        return
    whole = "stay whole" if recipe.target.layout == "uniform" else "stay whole or go whole"
    steps.warn(
        f"target.multiple_of is {recipe.target.multiple_of:,}, and the FFN is {facts.ffn:,} wide: "
        f"MLPs can only {whole}"
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
