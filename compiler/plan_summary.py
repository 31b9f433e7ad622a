# SPDX-License-Identifier: Apache-2.0
"""What a plan says, as data: `prunec plan --json` prints it, and the table is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from prunec.compiler.estimates import Sizes
from prunec.compiler.machine import Machine
from prunec.compiler.model.layout import (
    Layout,
    dense_layout,
    kv_bytes_per_token,
    prunable_parameters,
    total_parameters,
)
from prunec.compiler.placing import in_words
from prunec.compiler.plan import Cost, Plan
from prunec.compiler.plan_builder import Subject
from prunec.compiler.recipe import Recipe
from prunec.compiler.target import budget_of, describe_target, target_params


def summarise(
    recipe: Recipe, subject: Subject, plan: Plan, machine: Machine | None = None
) -> dict[str, Any]:
    """The model, the target, where the work lies, and the steps with what they take.

    `model` is the dense model; `target.uniform` the layout with all layers alike that comes nearest
    to the target, which is about the size that will be written. Bytes are at `model.dtype`. `total`
    sums the steps' costs, and takes the largest of what is held at once. `seconds` are on the
    machine, if there is one.
    """
    facts, sizes = subject.facts, Sizes(subject.facts, recipe.model.dtype)
    target = recipe.target
    model = {
        "source": recipe.model.source,
        "commit": subject.commit,
        "identity": subject.identity,
        "family": facts.family.model_type,
        "dtype": recipe.model.dtype,
        "vocab_size": facts.vocab_size,
        "hidden_size": facts.hidden_size,
        "head_dim": facts.head_dim,
        "tied_embeddings": facts.tied,
    }
    summary = {
        "model": model | _described(sizes, dense_layout(facts)),
        "method": recipe.method.kind,
        "target": {
            "asked": target_params(recipe),
            "layout": target.layout,
            "multiple_of": target.multiple_of,
            "words": describe_target(recipe, facts),
            "uniform": _described(sizes, budget_of(recipe, facts).uniform_layout()),
        },
        "exports": [export.model_dump(mode="json") for export in recipe.export],
        "placement": _placement(plan),
        **plan.as_dict(),
        "total": asdict(total_cost([step.cost for step in plan.steps])),
    }
    if machine:
        summary["machine"] = machine.name
        summary["seconds"] = {step.name: machine.seconds(step.cost) for step in plan.steps}
    return summary


def total_cost(costs: Sequence[Cost]) -> Cost:
    """What all steps take together: sums, and of what is held only for a while the most."""
    return Cost(
        token_forwards=sum(cost.token_forwards for cost in costs),
        memory_bytes=max(cost.memory_bytes for cost in costs),
        host_bytes=max(cost.host_bytes for cost in costs),
        gpu_bytes=max(cost.gpu_bytes for cost in costs),
        disk_bytes=sum(cost.disk_bytes for cost in costs),
        scratch_bytes=max(cost.scratch_bytes for cost in costs),
    )


def _described(sizes: Sizes, layout: Layout) -> dict[str, Any]:
    """What a layout comes to, and its layers."""
    facts = sizes.facts
    return {
        "parameters": total_parameters(facts, layout),
        "prunable_parameters": prunable_parameters(facts, layout),
        "weight_bytes": sizes.weight_bytes(layout),
        "kv_bytes_per_token": kv_bytes_per_token(facts, layout, sizes.value_bytes),
        "layers": [spec.as_dict() for spec in layout],
    }


def _placement(plan: Plan) -> dict[str, Any]:
    placed = {name: value for name, value in asdict(plan.placement).items() if name != "scratch"}
    return {"words": in_words(plan.placement)} | placed
