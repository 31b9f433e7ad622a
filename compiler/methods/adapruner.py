# SPDX-License-Identifier: Apache-2.0
"""A tuner around another method: trials on shared statistics, then the method as the best of them.

Source: AdaPruner (arXiv 2503.06184) for the joint space of calibration text and metrics, searched
by TPE; statistics that all trials share, and the tuner around any solver, are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from prunec.compiler.diagnostics import RecipeProblemError
from prunec.compiler.estimates import light
from prunec.compiler.estimates_search import judging
from prunec.compiler.estimates_tuning import trials
from prunec.compiler.methods import tyr, uniform
from prunec.compiler.methods.importance import add_resolve, add_statistics
from prunec.compiler.methods.teacher import TOP_K, add_teacher
from prunec.compiler.model.layout import Layout
from prunec.compiler.passes.importance import needs_of
from prunec.compiler.plan_builder import PlanBuilder, plain
from prunec.compiler.plan_tokens import Pool, pools
from prunec.compiler.recipe import AdaPrunerMethod, AllocationSpace, TyrMethod
from prunec.compiler.search.allocation import allocate
from prunec.compiler.search.budget import InfeasibleTargetError
from prunec.compiler.target import budget_of
from prunec.compiler.tuning.space import (
    ELEMENTS,
    FAITHFUL_AGGREGATIONS,
    FAITHFUL_EXPONENTS,
    VECTOR,
    TuningSpace,
)

#: Layers that stay whole as published, the first and the last of 32.
WHOLE_FIRST, WHOLE_LAST, OF_LAYERS = 4, 2, 32


def plan(steps: PlanBuilder, start: Layout) -> str:
    """Pools of text and their statistics; trials; the text that was chosen; the tuned method."""
    method = steps.recipe.method
    assert isinstance(method, AdaPrunerMethod)
    if method.faithful:
        start = _outermost_whole(steps)
    found = pools(steps)
    space = _space(steps, method, found)
    refit = method.refit and not method.faithful
    statistics = _add_pool_statistics(steps, method, found, space, with_gram=refit)
    if method.objective == "divergence":
        add_teacher(steps)
    _add_trials(steps, method, space, statistics, start, refit=refit)
    if method.inner == "tyr":
        _add_chosen(steps, statistics)
        return tyr.add_search(steps, TyrMethod(kind="tyr"), start)
    finalists = _finalists(method, refit=refit)
    for place in range(finalists):
        tokens, name = "calibration-tokens", "resolve"
        if finalists > 1:
            tokens, name = f"{tokens}-{place + 1}", f"finalist-{place + 1}"
        if refit:
            _add_chosen(steps, statistics, {"rank": place}, name=tokens)
        if method.inner == "uniform":
            uniform.add_resolve(steps, start, {"rank": place}, name=name, tokens=tokens)
            continue
        inputs = {"settings": "tune", "layout": "tune"}
        inputs |= {pool["statistics"]: pool["statistics"] for pool in statistics}
        add_resolve(steps, start, {"rank": place}, inputs, refit=refit, name=name, tokens=tokens)
    if finalists > 1:
        _add_finalists(steps, method, start)
    return "resolve"


def _add_finalists(steps: PlanBuilder, method: AdaPrunerMethod, start: Layout) -> None:
    """The step that judges the best trials as they were pruned in full."""
    held_out, top_k = _held_out(steps, method)
    layers = {f"layers-{n}": f"finalist-{n}" for n in range(1, method.finalists + 1)}
    steps.add(
        "resolve",
        "finalists",
        "take the finalist that is best on text that none was calibrated on",
        steps.model | {"objective": method.objective},
        held_out | layers,
        judging(
            steps.sizes,
            steps.text("search-tokens"),
            models=method.finalists,
            top_k=top_k,
            disk_bytes=steps.sizes.layers_bytes(start),
        ),
    )


def _space(steps: PlanBuilder, method: AdaPrunerMethod, found: Sequence[Pool]) -> TuningSpace:
    """What there is to choose, of everything that the recipe allows."""
    weights = {pool.part: pool.weight for pool in found}
    text: dict[str, Any] = {
        "weights": weights,
        "mixture": method.calibration.mixture,
        "lengths": tuple(sorted({pool.length for pool in found})),
        "loss_quantiles": method.calibration.loss_quantiles,
        "groups": method.calibration.groups,
    }
    if method.inner != "importance":
        damping, first_order = method.solver.damping, method.solver.first_order
        return TuningSpace(
            **text,
            damping=(damping[0], damping[1]),
            first_order=(first_order[0], first_order[1]),
        )
    fixed: dict[str, Any] = {"damping": (method.damping, method.damping)}
    if method.faithful:
        return TuningSpace(
            **text,
            **fixed,
            metrics=(VECTOR, *ELEMENTS.values()),
            aggregations=FAITHFUL_AGGREGATIONS,
            exponents=FAITHFUL_EXPONENTS,
            faithful=True,
        )
    metric = method.metric
    return TuningSpace(
        **text,
        **fixed,
        metrics=tuple(dict.fromkeys(metric.metrics)),
        aggregations=tuple(dict.fromkeys(metric.aggregations)),
        exponents=tuple(dict.fromkeys(metric.exponents)),
        **_allocation(steps, method.allocation),
    )


def _allocation(steps: PlanBuilder, space: AllocationSpace) -> dict[str, Any]:
    """What layers may keep; nothing to choose where all are alike."""
    if steps.recipe.target.layout == "uniform":
        if space != AllocationSpace():
            raise RecipeProblemError(
                "method.allocation",
                "method.allocation is given, and with target.layout: uniform all layers are alike",
                hint="leave it out, or use target.layout: per_layer",
            )
        return {}
    intervals = {"slope": space.slope, "bend": space.bend, "attention": space.attention}
    return {"allocations": tuple(dict.fromkeys(space.kinds))} | {
        name: (least, most) for name, (least, most) in intervals.items()
    }


def _outermost_whole(steps: PlanBuilder) -> Layout:
    """The layout as published: the outermost layers stay, the others lose alike."""
    if steps.recipe.target.layout == "uniform":
        raise RecipeProblemError(
            "target.layout",
            "target.layout is uniform; with method.faithful: true the outermost layers stay whole",
            hint="write layout: per_layer",
        )
    layers = steps.facts.layers
    first, last = (
        math.floor(layers * whole / OF_LAYERS + 0.5) for whole in (WHOLE_FIRST, WHOLE_LAST)
    )
    shares = [math.inf] * first + [1.0] * (layers - first - last) + [math.inf] * last
    try:
        return allocate(budget_of(steps.recipe, steps.facts), shares)
    except InfeasibleTargetError as error:
        key = f"target.{steps.recipe.target.size}"
        raise RecipeProblemError(
            key,
            f"{error}, were the first {first} and the last {last} of {layers} layers left whole "
            "(method.faithful)",
            hint=f"change {key}",
        ) from None


def _add_pool_statistics(
    steps: PlanBuilder,
    method: AdaPrunerMethod,
    found: Sequence[Pool],
    space: TuningSpace,
    *,
    with_gram: bool,
) -> list[dict[str, Any]]:
    """The pools as parameters of the steps to come, each with its tokens and its statistics."""
    calibration = steps.recipe.calibration
    assert calibration is not None
    needs, plain_pools = needs_of(space.metrics), []
    kinds = space.loss_quantiles * space.groups
    for pool in found:
        windows = next(step for step in steps.steps if step.name == pool.step).params["windows"]
        if windows < kinds:
            raise RecipeProblemError(
                "method.calibration",
                f"method.calibration sorts windows into {space.loss_quantiles} classes of "
                f"{space.groups} groups, and {pool.step} has {windows} windows",
                hint="raise calibration.tokens, or lower loss_quantiles or groups",
            )
        name = f"statistics{pool.step.removeprefix('pool')}"
        add_statistics(
            steps,
            name,
            pool.step,
            with_gram=with_gram or "gram" in needs,
            with_gradients="gradients" in needs,
            loss_quantiles=space.loss_quantiles,
            groups=space.groups,
            seed=calibration.seed,
        )
        plain_pools.append(
            {"part": pool.part, "length": pool.length, "tokens": pool.step, "statistics": name}
        )
    return plain_pools


def _add_trials(
    steps: PlanBuilder,
    method: AdaPrunerMethod,
    space: TuningSpace,
    statistics: Sequence[dict[str, Any]],
    start: Layout,
    *,
    refit: bool,
) -> None:
    search = steps.recipe.search
    assert search is not None
    held_out, top_k = _held_out(steps, method)
    steps.add(
        "tune",
        "tune",
        f"try {method.trials} settings, each on statistics that are there",
        steps.model
        | steps.budget()
        | {
            "inner": method.inner,
            "space": space.as_dict(),
            "pools": list(statistics),
            "layout": plain(start),
            "refit": refit,
            "objective": method.objective,
            "trials": method.trials,
            "finalists": _finalists(method, refit=refit),
            "sampler": method.sampler,
            "startup": method.startup_trials,
            "seed": search.seed,
        },
        held_out | {pool["statistics"]: pool["statistics"] for pool in statistics},
        trials(
            steps.sizes,
            steps.text("search-tokens"),
            number=method.trials,
            top_k=top_k,
            statistics_bytes=sum(
                step.cost.disk_bytes for step in steps.steps if step.kind == "statistics"
            ),
            solves=refit,
            first_order=space.first_order[1],
            disk_bytes=steps.sizes.layers_bytes(start),
        ),
    )


def _held_out(steps: PlanBuilder, method: AdaPrunerMethod) -> tuple[dict[str, str], int]:
    """Inputs of a step that judges models, and the dense model's tokens that it compares, 0 where
    it compares none."""
    inputs = {"tokens": "search-tokens"}
    if method.objective != "divergence":
        return inputs, 0
    return inputs | {"teacher": "teacher"}, min(TOP_K, steps.facts.vocab_size)


def _finalists(method: AdaPrunerMethod, *, refit: bool) -> int:
    """How many of the best trials are pruned in full."""
    return method.finalists if refit and method.inner != "tyr" else 1


def _add_chosen(
    steps: PlanBuilder,
    statistics: Sequence[dict[str, Any]],
    rank: Mapping[str, int] = MappingProxyType({}),
    *,
    name: str = "calibration-tokens",
) -> None:
    """The step that draws from the pools what the trial at a place was calibrated on."""
    calibration = steps.recipe.calibration
    assert calibration is not None
    windows = math.ceil(calibration.tokens / calibration.sequence_length)
    inputs = {"settings": "tune"}
    for pool in statistics:
        inputs |= {pool["tokens"]: pool["tokens"], pool["statistics"]: pool["statistics"]}
    steps.add(
        name,
        "chosen",
        "the text that was found best to fit the weights to",
        {
            "pools": list(statistics),
            "windows": windows,
            "length": calibration.sequence_length,
            "seed": calibration.seed,
            **rank,
        },
        inputs,
        light(8 * windows * calibration.sequence_length),
    )
