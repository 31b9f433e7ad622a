# SPDX-License-Identifier: Apache-2.0
"""Search for the layout over supernets of exactly solved levels; the winner is solved anew."""

from __future__ import annotations

from typing import Any

from prunec.compiler import estimates_search
from prunec.compiler.diagnostics import RecipeProblemError
from prunec.compiler.estimates_walk import walk
from prunec.compiler.methods.published import plan as plan_published
from prunec.compiler.methods.teacher import TOP_K, add_teacher
from prunec.compiler.model.layout import Layout
from prunec.compiler.plan_builder import PlanBuilder, plain
from prunec.compiler.recipe import Search, TyrMethod
from prunec.compiler.search.budget import InfeasibleTargetError
from prunec.compiler.target import uniform_layout_at


def plan(steps: PlanBuilder, start: Layout) -> str:
    """Rounds of supernet and search, each around the last one's winner; then resolve."""
    method = steps.recipe.method
    assert isinstance(method, TyrMethod)
    if method.faithful:
        return plan_published(steps)
    return add_search(steps, method, start)


def add_search(steps: PlanBuilder, method: TyrMethod, start: Layout) -> str:
    """The rounds of `method`, which need not be the recipe's; a tuner settles what is not its."""
    search = steps.recipe.search
    assert search is not None
    add_teacher(steps)
    allowances = _allowances(search, method.rounds, steps.count("search-tokens"))
    layout_of = ""
    for number in range(1, method.rounds + 1):
        centre = plain(_centre(steps, method, start)) if number == 1 else None
        walked = {"tokens": "calibration-tokens"} | ({"centre": layout_of} if layout_of else {})
        steps.add(
            f"supernet-{number}",
            "supernet",
            "solve every size of every layer"
            + (" around the last winner" if layout_of else " around the uniform layout"),
            # Fitted to the dense model's activations, levels near the centre would look better
            # than they are beside the others.
            steps.model
            | steps.solver()
            | {"dense_target": 0.0}
            | ({"centre": centre} if centre else {})
            | (steps.budget() if method.centre is None else steps.legality()),
            walked | steps.tuned,
            walk(
                steps.sizes,
                steps.text("calibration-tokens"),
                disk_bytes=estimates_search.nested_bytes(steps.sizes)
                + steps.sizes.layers_bytes(start),
                first_order=method.first_order,
            ),
        )
        step = steps.neurons(method.first_step / 2 ** (number - 1))
        # What the last round learnt of the layers still holds around its winner.
        earlier = {"earlier": layout_of} if layout_of and search.searcher == "surrogate" else {}
        steps.add(
            f"search-{number}",
            "search",
            f"compare layouts, in steps of {step} neurons or one attention level",
            steps.model
            | steps.budget()
            | allowances[number - 1]
            | {
                "searcher": search.searcher,
                "offspring": method.offspring,
                "step": step,
                "seed": [search.seed, number],
            }
            | ({"start": plain(start)} if centre and method.centre is not None else {}),
            {"supernet": f"supernet-{number}", "teacher": "teacher", "tokens": "search-tokens"}
            | earlier,
            estimates_search.search(
                steps.sizes,
                steps.text("search-tokens"),
                token_forwards=allowances[number - 1]["token_forwards"] or 0,
                top_k=TOP_K,
                kept=steps.sizes.share(start),
                level=step,
                relaxes=search.searcher == "level_relaxation",
            ),
        )
        layout_of = f"search-{number}"
    steps.add(
        "resolve",
        "resolve",
        "fit the winner once more, layer by layer, to the inputs it really sees",
        steps.model | steps.solver(),
        {"tokens": "calibration-tokens", "layout": layout_of} | steps.tuned,
        walk(
            steps.sizes,
            steps.text("calibration-tokens"),
            disk_bytes=steps.sizes.layers_bytes(start),
            dense_target=steps.solver()["dense_target"],
            first_order=method.first_order,
            kept=steps.sizes.share(start),
        ),
    )
    return "resolve"


def _centre(steps: PlanBuilder, method: TyrMethod, start: Layout) -> Layout:
    """The layout that the first supernet is built around."""
    if method.centre is None:
        return start
    try:
        return uniform_layout_at(steps.recipe, steps.facts, method.centre)
    except InfeasibleTargetError as error:
        raise RecipeProblemError(
            "method.centre",
            f"method.centre is {method.centre}; {error}",
            hint="change or remove it",
        ) from None


def _allowances(search: Search, rounds: int, tokens: int) -> list[dict[str, Any]]:
    """What every round may spend, as parameters of its search; the teacher is paid for first."""
    budget = search.budget
    if budget.minutes is not None:
        return [{"token_forwards": None, "seconds": 60 * budget.minutes / rounds}] * rounds
    assert budget.token_forwards is not None  # one of the two is settled with the recipe
    left = budget.token_forwards - tokens
    if left < rounds * tokens:
        raise RecipeProblemError(
            "search.budget.token_forwards",
            f"search.budget.token_forwards is {budget.token_forwards:,}; "
            f"{rounds} {'rounds' if rounds > 1 else 'round'} on {tokens:,} tokens take at least "
            f"{(rounds + 1) * tokens:,}",
            hint="raise the budget, or lower search.tokens or method.rounds",
        )
    return [{"token_forwards": left // rounds, "seconds": None}] * rounds
