# SPDX-License-Identifier: Apache-2.0
"""A search over the layouts that a supernet can be cut to."""

from __future__ import annotations

from typing import Any

import numpy as np

from prunec.compiler.layer_store import load_nested
from prunec.compiler.model.errors import ModelError
from prunec.compiler.plan import Step
from prunec.compiler.search.allowance import Allowance
from prunec.compiler.search.budget import Candidate
from prunec.compiler.search.evaluator import Evaluator
from prunec.compiler.search.evolutionary import Evolutionary
from prunec.compiler.search.level_relaxation import LevelRelaxation, sites_around
from prunec.compiler.search.random_layouts import RandomLayouts
from prunec.compiler.search.relaxation import Relaxation
from prunec.compiler.search.remembered import Remembered
from prunec.compiler.search.searcher import Searcher, Settings, State, search
from prunec.compiler.search.shared import SharedScorer, assist
from prunec.compiler.search.space import Space
from prunec.compiler.search.surrogate import ErrorCurves, Surrogate
from prunec.compiler.steps.context import Context, Progress, Summary, layout_of, plain_layout
from prunec.compiler.steps.teacher import teacher_of
from prunec.compiler.store import Entry
from prunec.compiler.target import budget_of


def run_search(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    decoder, ids, params = context.decoder, context.ids(step), step.params
    device = decoder.device
    supernet_entry = context.entry(step, "supernet")
    supernet = [load_nested(supernet_entry, i, device) for i in range(decoder.facts.layers)]
    distributions = teacher_of(context, step)
    assert distributions is not None  # every plan of a search has one
    budget = budget_of(context.recipe, context.subject.facts)
    supernet_step = context.plan.step(step.inputs["supernet"])
    space = Space.within(budget, [nested.attention.shapes for nested in supernet])
    start = _start(context, step, supernet_step, space)
    settings = Settings(
        offspring=params["offspring"],
        step=params["step"],
        windows=len(ids),
        length=ids.shape[1],
        seed=tuple(params["seed"]),
    )

    def searcher() -> Searcher:
        match params["searcher"]:
            case "evolutionary":
                return Evolutionary(space)
            case "random":
                return RandomLayouts(space)
            case "level_relaxation":
                sites = sites_around(space, start, settings.step)
                mixture = Relaxation(decoder, supernet, ids, distributions, sites)
                return LevelRelaxation(space, start, sites, mixture)
            case _:
                earlier = context.found(step, "earlier") if "earlier" in step.inputs else {}
                known = earlier.get("surrogate") or {}
                prior = known.get("sensitivities")
                return Surrogate(space, ErrorCurves.of(supernet), start, prior)

    evaluator, shared = Evaluator(decoder, supernet, ids, distributions), None
    if not context.workers.leads:
        assist(evaluator, context.workers)
        return {}
    if context.workers.size > 1:
        shared = SharedScorer(evaluator, context.workers)

    saved = entry.load_json("state")
    resumed = State.from_dict(saved) if saved else None
    unfinished = entry.load_json("scores") or {}
    generation = len(resumed.history) if resumed else 0
    scorer = Remembered(
        shared or evaluator,
        unfinished["scores"] if unfinished.get("generation") == generation else {},
        lambda scores: entry.save_json("scores", {"generation": generation, "scores": scores}),
    )
    allowance = Allowance(
        params["token_forwards"],
        params["seconds"],
        resumed.token_forwards if resumed else 0,
        resumed.seconds if resumed else 0.0,
    )

    def remember(state: State) -> None:
        nonlocal generation
        entry.save_json("state", state.as_dict())
        scorer.forget()
        generation = len(state.history)
        best = f"token-forwards, divergence {state.divergence:.4f}"
        if params["seconds"] is None:
            progress(state.token_forwards, params["token_forwards"], best)
        else:
            best = f"seconds, {state.token_forwards:,} {best}"
            progress(round(state.seconds), round(params["seconds"]), best)

    state = search(
        searcher(),
        space,
        scorer,
        start,
        settings,
        allowance,
        resumed=resumed,
        on_generation=remember,
    )
    if shared:
        shared.end()
    return {
        "token_forwards": state.token_forwards,
        "layout": plain_layout(budget.layout(state.parent)),
        "divergence": state.divergence,
        "history": [vars(line) for line in state.history],
        "surrogate": _surrogate(state) if params["searcher"] == "surrogate" else None,
    }


def _start(context: Context, step: Step, supernet: Step, space: Space) -> Candidate:
    """Where the search begins: the supernet's centre, or as near as a supernet around another
    centre comes to the uniform layout."""
    if "start" not in step.params:
        return Candidate.of(layout_of(context, supernet, "centre"))
    params = step.params
    wanted = Candidate.of(layout_of(context, step, "start"))
    start = space.reachable(wanted, params["step"], np.random.default_rng([*params["seed"], 0]))
    if start is None:
        raise ModelError(
            "no layout of the size asked for can be cut near the uniform one from a supernet "
            "around another size",
            hint="remove method.centre; for a sweep, add --own-supernets",
        )
    return start


def _surrogate(state: State) -> dict[str, Any]:
    """What is to be known of the surrogate: how far it could be trusted, and what it learnt."""
    correlations = state.notes.get("rank_correlations", [])
    kept = {k: v for k, v in state.notes.items() if k not in ("predictions", "rank_correlations")}
    mean = sum(correlations) / len(correlations) if correlations else None
    return {"probes": 0, "rank_correlation": mean, "rank_correlations": correlations} | kept
