# SPDX-License-Identifier: Apache-2.0
"""Settings tried one after another on statistics that all of them share; the best are kept."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from prunec.compiler.diagnostics import BuildError
from prunec.compiler.model.errors import ModelError
from prunec.compiler.passes.importance.statistics import LayerStatistics
from prunec.compiler.plan import Step, digest
from prunec.compiler.plan_builder import VERSIONS
from prunec.compiler.recipe import AdaPrunerMethod
from prunec.compiler.steps.context import Context, Progress, Summary, layout_of, plain_layout
from prunec.compiler.steps.statistics import load_statistics
from prunec.compiler.steps.teacher import teacher_of
from prunec.compiler.store import Entry
from prunec.compiler.target import budget_of
from prunec.compiler.tuning.held_out import HeldOut
from prunec.compiler.tuning.one_shot import OneShot
from prunec.compiler.tuning.pools import Group, Pool, Pools
from prunec.compiler.tuning.space import TuningSpace

if TYPE_CHECKING:
    from prunec.compiler.tuning.study import StudyPlan, Tried

#: The file in a build's store that studies are kept in where the recipe names none.
STUDY = "study.db"


def run_tune(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    try:
        from prunec.compiler.tuning.objective import FOLDER, Judge
        from prunec.compiler.tuning.study import best_of, importances, run_study
    except ModuleNotFoundError as error:
        raise BuildError(
            f"settings cannot be tuned without {error.name}", hint="pip install 'prunec[tune]'"
        ) from None
    pools = _pools(context, step)
    one_shot = OneShot(
        context.subject.facts,
        budget_of(context.recipe, context.subject.facts),
        layout_of(context, step, "layout"),
        pools,
        step.params["refit"],
    )
    entry.folder.mkdir(parents=True, exist_ok=True)
    for left in entry.folder.glob(f"{FOLDER}*"):  # of a trial that was killed
        shutil.rmtree(left, ignore_errors=True)
    held_out = HeldOut(context.ids(step), teacher_of(context, step))
    judge = Judge(context.decoder, one_shot, held_out, entry.folder)
    plan = _study_plan(context, step)
    objective = step.params["objective"]

    def tell(tried: Sequence[Tried]) -> None:
        value = "".join(f", {objective} {one.value:.4f} at best" for one in best_of(tried))
        progress(len(tried), plan.trials, f"trials{value}")

    tried = run_study(plan, judge.looks, tell)
    best = best_of(tried, step.params["finalists"])
    if not best:
        raise ModelError(
            f"none of {len(tried)} trials gave a model; the last: {tried[-1].error}",
            hint="widen the space under method, or raise calibration.tokens",
        )
    finalists = [
        {
            "settings": trial.settings.as_dict()
            | {"mixture": [list(one) for one in pools.mixture(trial.settings.calibration)]},
            "layout": plain_layout(one_shot.layout(trial.settings)),
        }
        for trial in best
    ]
    return {
        "token_forwards": sum(trial.token_forwards for trial in tried),
        **finalists[0],
        # Where fewer trials ended well than there are places, the best takes those that are left.
        "finalists": [
            *finalists,
            *[finalists[0]] * (step.params["finalists"] - len(finalists)),
        ],
        "tuning": {
            "objective": objective,
            "sampler": plan.sampler,
            "trials": [_plain(plan.space, trial) for trial in tried],
            "ranked": [trial.number for trial in best],
            "importances": importances(plan),
            "collected": sum(
                context.found(step, pool["statistics"])["token_forwards"]
                for pool in step.params["pools"]
            ),
            "startup": min(plan.startup, plan.trials),
        },
    }


def _study_plan(context: Context, step: Step) -> StudyPlan:
    from prunec.compiler.tuning.study import StudyPlan

    method, params = context.recipe.method, step.params
    assert isinstance(method, AdaPrunerMethod)
    # How many there are, and what becomes of the best, changes no trial: more of them go on where
    # fewer have ended.
    decisive = {name: params[name] for name in params if name not in ("trials", "finalists")}
    inputs = {role: context.plan.step(name).fingerprint for role, name in step.inputs.items()}
    return StudyPlan(
        path=method.study or context.store.root / STUDY,
        name=digest([VERSIONS["tune"], decisive, inputs]),
        space=TuningSpace.from_dict(params["space"]),
        trials=params["trials"],
        sampler=params["sampler"],
        startup=params["startup"],
        seed=params["seed"],
    )


def _pools(context: Context, step: Step) -> Pools:
    device, found = context.decoder.device, []
    for pool in step.params["pools"]:
        role = pool["statistics"]
        entry, summary = context.entry(step, role), context.found(step, role)
        layers: list[list[dict[str, Any]]] = summary["layers"]
        groups = [
            Group(group["quantile"], group["number"], tuple(group["windows"]), numbers["tokens"])
            for group, numbers in zip(summary["groups"], layers[0], strict=True)
        ]
        found.append(
            Pool(
                name=role,
                part=pool["part"],
                length=pool["length"],
                groups=tuple(groups),
                load=partial(_layer_statistics, entry, device),
                turns={
                    kind: [[group[kind] / group["tokens"] for group in layer] for layer in layers]
                    for kind in ("influence", "angular")
                },
            )
        )
    return Pools(found)


def _layer_statistics(entry: Entry, device: torch.device, layer: int) -> list[LayerStatistics]:
    return load_statistics(entry, layer, device)


def _plain(space: TuningSpace, trial: Tried) -> dict[str, Any]:
    """A trial as reports show it."""
    return {
        "number": trial.number,
        "value": trial.value,
        "state": trial.state,
        "seconds": trial.seconds,
        "token_forwards": trial.token_forwards,
        "settings": space.described(trial.settings),
    }


def tuned_in_words(tuning: Summary) -> str:
    """What a study has found, in a line."""
    values = [trial["value"] for trial in tuning["trials"] if trial["value"] is not None]
    counts = {
        state: sum(trial["state"] == state for trial in tuning["trials"])
        for state in ("pruned", "failed", "repeated")
    }
    words = {"pruned": "stopped early", "failed": "failed", "repeated": "repeated"}
    others = ", ".join(f"{count} {words[state]}" for state, count in counts.items() if count)
    return (
        f"{tuning['objective']} {values[0]:.4f} → {min(values):.4f} in {len(tuning['trials'])} "
        f"trials{f' ({others})' if others else ''}"
    )
