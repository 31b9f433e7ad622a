# SPDX-License-Identifier: Apache-2.0
"""What a recipe's target means for one model: which layouts are small enough, and legal."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from prunec.compiler.diagnostics import RecipeProblemError
from prunec.compiler.estimates import Sizes
from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import (
    Layout,
    dense_layout,
    prunable_parameters,
    total_parameters,
)
from prunec.compiler.recipe import Recipe
from prunec.compiler.search import price
from prunec.compiler.search.budget import Budget, Ceiling
from prunec.compiler.search.latency import Latency, LatencyError
from prunec.exporters import exporter_for

_PROFILE = "target.speedup.profile"


def budget_of(recipe: Recipe, facts: Facts) -> Budget:
    """Cost and legality of the layouts that the recipe allows: every export must express them.

    Raises RecipeProblemError for a latency table that does not go with the model.
    """
    kind = recipe.target.layout
    exporters = [exporter_for(export.model_dump()) for export in recipe.export]
    return Budget(
        facts=facts,
        target=_size(recipe, facts),
        multiple_of=recipe.target.multiple_of,
        tied=kind == "uniform",
        attention_is_legal=lambda queries, kv: all(
            exporter.attention_is_legal(facts, kind, queries, kv) for exporter in exporters
        ),
        mlp_is_legal=lambda width: all(
            exporter.mlp_is_legal(kind, width) for exporter in exporters
        ),
        attended=frozenset().union(*(exporter.attended for exporter in exporters)),
    )


def uniform_layout_at(recipe: Recipe, facts: Facts, sparsity: float) -> Layout:
    """The uniform layout that would be legal for the recipe if this were its target.

    Raises InfeasibleTargetError.
    """
    return replace(budget_of(recipe, facts), target=sparsity).uniform_layout()


def target_params(recipe: Recipe) -> dict[str, Any]:
    """The size that is asked for, as a step's parameters; a latency table by its content."""
    name, speedup = recipe.target.size, recipe.target.speedup
    if speedup is None:
        return {name: getattr(recipe.target, name)}
    measured = hashlib.sha256(speedup.profile.read_bytes()).hexdigest()
    return {name: {"ratio": speedup.ratio, "phase": speedup.phase, "profile": measured}}


def describe_target(recipe: Recipe, facts: Facts) -> str:
    """What the smaller model will be like, for people."""
    budget = budget_of(recipe, facts)
    if not isinstance(budget.target, Ceiling):
        total = total_parameters(facts, dense_layout(facts))
        removed = prunable_parameters(facts, dense_layout(facts)) - round(budget.limit)
        return (
            f"{total - removed:,} parameters, {round(budget.limit):,} of them prunable "
            f"({budget.target:.1%} removed)"
        )
    limit, unit = budget.target.limit, budget.price.unit
    share = limit / (budget.price.constant + budget.dense_size)
    if speedup := recipe.target.speedup:
        hardware = _latency(recipe, facts).machine.get("hardware")
        return (
            f"{speedup.phase} {speedup.ratio:g} times as fast, at most {limit:,.4g} {unit} "
            f"on {hardware}"
        )
    return f"at most {limit:,} {unit} ({share:.1%} of the dense model's)"


def _size(recipe: Recipe, facts: Facts) -> float | Ceiling:
    target = recipe.target
    value_bytes = Sizes(facts, recipe.model.dtype).value_bytes
    if target.parameters:
        return Ceiling(price.parameter_price(facts), target.parameters)
    if target.weight_bytes:
        return Ceiling(price.weight_price(facts, value_bytes), target.weight_bytes)
    if target.kv_bytes_per_token:
        return Ceiling(price.kv_price(facts, value_bytes), target.kv_bytes_per_token)
    if target.speedup:
        times = _latency(recipe, facts).times(target.speedup.phase)
        dense = 1e3 * times.of_layout(dense_layout(facts))
        return Ceiling(price.latency_price(times), dense / target.speedup.ratio)
    assert target.sparsity is not None  # one of the five is given
    return target.sparsity


def _latency(recipe: Recipe, facts: Facts) -> Latency:
    speedup, target = recipe.target.speedup, recipe.target
    assert speedup is not None
    try:
        latency = Latency.load(speedup.profile)
        latency.check(facts, recipe.model.dtype, target.multiple_of)
    except LatencyError as error:
        raise RecipeProblemError(
            _PROFILE,
            f"{_PROFILE} ({speedup.profile}) {error.message}",
            hint="measure this model on the machine it is for: prunec profile RECIPE",
        ) from None
    return latency
