# SPDX-License-Identifier: Apache-2.0
"""Score every unit once, remove those of the lowest scores, refit what stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunec.compiler import estimates_walk
from prunec.compiler.diagnostics import RecipeProblemError
from prunec.compiler.model.layout import Layout
from prunec.compiler.passes.importance import needs_of
from prunec.compiler.plan_builder import PlanBuilder, plain
from prunec.compiler.recipe import ImportanceMethod

#: What decides how much each layer keeps, with the values that keep them alike.
ALLOCATION = {"allocation": "uniform", "slope": 0.0, "bend": 0.0, "attention": 1.0}


def plan(steps: PlanBuilder, start: Layout) -> str:
    """Statistics of the calibration text, if the metrics or the allocation need any; resolve."""
    method = steps.recipe.method
    assert isinstance(method, ImportanceMethod)
    allocation = {name: getattr(method, name) for name in ALLOCATION}
    unlike = [name for name, alike in ALLOCATION.items() if allocation[name] != alike]
    if unlike and steps.recipe.target.layout == "uniform":
        key = f"method.{unlike[0]}"
        raise RecipeProblemError(
            key,
            f"{key} is {allocation[unlike[0]]}, which has layers or sublayers keep unlike shares; "
            "with target.layout: uniform all keep the same",
            hint="leave it out, or use target.layout: per_layer",
        )
    turned = method.allocation != "uniform"
    metrics = {name: weight for name, weight in method.metrics.items() if weight > 0}
    inputs: dict[str, str] = {}
    needs = needs_of(metrics)
    if needs or turned:
        add_statistics(
            steps,
            "statistics",
            "calibration-tokens",
            with_gram="gram" in needs,
            with_gradients="gradients" in needs,
        )
        inputs["statistics"] = "statistics"
    scoring = {
        "metrics": metrics,
        "aggregation": method.aggregation,
        "exponent": method.exponent,
        "damping": method.damping,
        "by_part": False,
    }
    shape: dict[str, Any] = {"layout": plain(start)}
    if unlike:
        shape = allocation | {"spread": method.spread} | steps.budget()
    add_resolve(steps, start, scoring | shape, inputs, refit=method.refit)
    return "resolve"


def add_statistics(
    steps: PlanBuilder,
    name: str,
    tokens: str,
    *,
    with_gram: bool,
    with_gradients: bool,
    loss_quantiles: int = 1,
    groups: int = 1,
    seed: int = 0,
) -> None:
    """The step that collects what metrics read of the windows that the step `tokens` draws."""
    collected = {"with_gram": with_gram, "with_gradients": with_gradients}
    dealt = {"loss_quantiles": loss_quantiles, "groups": groups, "seed": seed}
    steps.add(
        name,
        "statistics",
        "what the metrics read of the text, of the dense model"
        + (", backward too" if with_gradients else ""),
        steps.model | dealt | collected,
        {"tokens": tokens},
        estimates_walk.statistics(
            steps.sizes,
            steps.text(tokens),
            groups=loss_quantiles * groups,
            loss_quantiles=loss_quantiles,
            **collected,
        ),
    )


def add_resolve(
    steps: PlanBuilder,
    start: Layout,
    params: Mapping[str, Any],
    inputs: Mapping[str, str],
    *,
    refit: bool,
    name: str = "resolve",
    tokens: str = "calibration-tokens",
) -> None:
    """The step that scores, removes and, if asked for, refits along the text of step `tokens`."""
    if refit:
        solver = steps.solver()
        dense_target = {"dense_target": solver["dense_target"]}
        steps.add(
            name,
            "resolve",
            "remove the units of lowest scores, refit what stays layer by layer",
            {**steps.model, "solver": "importance", "refit": True, **dense_target, **params},
            {"tokens": tokens, **inputs},
            estimates_walk.walk(
                steps.sizes,
                steps.text(tokens),
                disk_bytes=steps.sizes.layers_bytes(start),
                dense_target=solver["dense_target"],
                eliminates=False,
                kept=steps.sizes.share(start),
            ),
        )
        return
    steps.add(
        name,
        "resolve",
        "remove the units of lowest scores; nothing is refitted",
        {**steps.model, "solver": "importance", "refit": False, **params},
        inputs,
        estimates_walk.removal(steps.sizes, disk_bytes=steps.sizes.layers_bytes(start)),
    )
