# SPDX-License-Identifier: Apache-2.0
"""Týr as published, to compare with: rounds of supernet and search, each from the dense model.

Its settings are those of arXiv 2503.09657 and its code; where the budget is smaller than theirs,
generations are what gives way.
"""

from __future__ import annotations

from dataclasses import replace

from prunec.compiler.diagnostics import RecipeProblemError
from prunec.compiler.estimates_search import judging
from prunec.compiler.estimates_walk import walk
from prunec.compiler.methods.teacher import add_teacher
from prunec.compiler.model.layout import dense_layout
from prunec.compiler.plan import Estimate
from prunec.compiler.plan_builder import PlanBuilder
from prunec.compiler.recipe import Search, TyrMethod
from prunec.compiler.search import grid
from prunec.compiler.search.budget import InfeasibleTargetError
from prunec.compiler.search.published import generation_cost

GENERATIONS = 50
#: Most likely tokens of the dense model among which distributions are compared.
TOP_K = 8192


def plan(steps: PlanBuilder) -> str:
    method, search, facts = steps.recipe.method, steps.recipe.search, steps.facts
    assert isinstance(method, TyrMethod) and search is not None
    rounds, offspring = method.rounds, method.offspring
    sizes = _first_sizes(steps)
    share, generations = _allowance(steps, rounds, offspring)
    multiple_of = steps.recipe.target.multiple_of
    add_teacher(steps, TOP_K)
    solver = {"damping": method.damping, "accumulation": method.accumulation}
    last = ""
    for number in range(1, rounds + 1):
        heads, neurons = grid.step_sizes(facts, number, multiple_of)
        level_bytes = _level_bytes(steps, sizes, (heads, neurons))
        steps.add(
            f"supernet-{number}",
            "published-supernet",
            f"solve levels {heads} heads and {neurons} neurons apart, one by one",
            steps.model
            | solver
            | {"step": [heads, neurons]}
            | ({} if last else {"centre": sizes.as_dict()}),
            {"tokens": "calibration-tokens"} | ({"centre": last} if last else {}),
            _walk(steps, level_bytes),
        )
        last = f"search-{number}"
        steps.add(
            last,
            "published-search",
            "move levels between sublayers of the same type",
            steps.model
            | {
                "offspring": offspring,
                "generations": generations,
                "token_forwards": share,
                "seed": [search.seed, number],
            },
            {"supernet": f"supernet-{number}", "teacher": "teacher", "tokens": "search-tokens"},
            judging(
                steps.sizes,
                steps.text("search-tokens"),
                models=share // steps.count("search-tokens"),
                top_k=TOP_K,
                beside=level_bytes,
            ),
        )
    steps.add(
        "layers",
        "published-layers",
        "cut the winner from its levels; what unread KV heads held goes to the MLPs",
        steps.model
        | solver
        | {"sparsity": steps.recipe.target.sparsity, "multiple_of": multiple_of},
        {"search": last, "supernet": f"supernet-{rounds}", "tokens": "calibration-tokens"},
        _walk(steps, steps.sizes.layers_bytes(dense_layout(facts))),
    )
    return "layers"


def _walk(steps: PlanBuilder, disk_bytes: int) -> Estimate:
    """What a walk takes, whose matrices stay in memory whatever the placement says."""
    paged = walk(steps.sizes, steps.text("calibration-tokens"), disk_bytes=disk_bytes)
    return lambda placement: paged(replace(placement, matrices_in_file=False))


def _first_sizes(steps: PlanBuilder) -> grid.Sizes:
    """The first centre; RecipeProblemError for a target that this method cannot meet."""
    target, search = steps.recipe.target, steps.recipe.search
    assert search is not None
    if target.sparsity is None:
        raise RecipeProblemError(
            f"target.{target.size}",
            f"target.{target.size} is not read with method.faithful: true",
            hint="give target.sparsity",
        )
    if target.layout == "uniform":
        raise RecipeProblemError(
            "target.layout",
            "target.layout is uniform; with method.faithful: true every layer gets a shape of its "
            "own, with query heads unevenly on its KV heads",
            hint="write layout: per_layer",
        )
    if search.searcher != Search.model_fields["searcher"].default:
        raise RecipeProblemError(
            "search.searcher", "search.searcher is not read with method.faithful: true", "remove it"
        )
    try:
        return grid.first_sizes(steps.facts, target.sparsity, target.multiple_of)
    except InfeasibleTargetError as error:
        raise RecipeProblemError(
            "target.sparsity", f"target.sparsity is {target.sparsity}; {error}", hint="lower it"
        ) from None


def _allowance(steps: PlanBuilder, rounds: int, offspring: int) -> tuple[int, int]:
    """(token-forwards, generations) of a round: all alike, after the teacher."""
    search = steps.recipe.search
    assert search is not None
    draw = next(step for step in steps.steps if step.name == "search-tokens").params
    windows, length = draw["windows"], draw["length"]
    budget, tokens = search.budget.token_forwards, windows * length
    if budget is None:
        raise RecipeProblemError(
            "search.budget.minutes",
            "search.budget.minutes is not read with method.faithful: true",
            hint="give search.budget.token_forwards",
        )
    cost = generation_cost(offspring, windows, length)
    share = (budget - tokens) // rounds
    generations = min(GENERATIONS, (share - tokens) // cost)
    if generations < 1:
        raise RecipeProblemError(
            "search.budget.token_forwards",
            f"search.budget.token_forwards is {budget:,}; {rounds} rounds of one generation take "
            f"{tokens + rounds * (tokens + cost):,}",
            hint="raise it, or lower search.tokens or method.offspring",
        )
    return tokens + generations * cost, generations


def _level_bytes(steps: PlanBuilder, sizes: grid.Sizes, step: tuple[int, int]) -> int:
    """All levels of all layers, as they are kept: the units that stay of o_proj and down_proj."""
    facts = steps.facts
    heads, neurons = (
        sum(kept for centre in centres for kept in grid.level_sizes(centre, apart, dense).values())
        for centres, apart, dense in (
            (sizes.heads, step[0], facts.query_heads),
            (sizes.neurons, step[1], facts.ffn),
        )
    )
    values = facts.hidden_size * (heads * facts.head_dim + neurons)
    return values * steps.sizes.value_bytes
