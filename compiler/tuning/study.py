# SPDX-License-Identifier: Apache-2.0
"""A study: trials in an SQLite file, each run once, by one build or by several that share it.

Trials are handed out in `Workers.turn`: first those that a dead build had begun, with the settings
and the number that they have, then new ones. A trial's result is told in one transaction, so that
a build that is killed loses the trial it was running and nothing else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.pruners import MedianPruner
from optuna.trial import FrozenTrial, Trial, TrialState

from prunec.compiler.model.errors import ModelError
from prunec.compiler.tuning.sampler import SeededSampler
from prunec.compiler.tuning.settings import Settings
from prunec.compiler.tuning.space import Choice, Point, TuningSpace
from prunec.compiler.tuning.storage import opened, quietly
from prunec.compiler.tuning.workers import Workers

#: Seconds between looks at a trial that another build is running.
PATIENCE = 0.5
#: Complete trials that importances can be told from, and the share of them that counts as good.
ENOUGH, GOOD = 8, 0.25

_STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


@dataclass(frozen=True)
class Look:
    """A trial on a part of the held-out text: the objective there, and what it took so far.

    whole: whether that is all of the text
    """

    value: float
    token_forwards: int
    whole: bool


#: Judges settings on growing parts of the held-out text until it is closed; ModelError for those
#: that do not work.
Objective = Callable[[Settings], Generator[Look, None, None]]


@dataclass(frozen=True)
class StudyPlan:
    """What is studied, and where.

    name: changes with everything that a trial's result depends on
    startup: trials before the sampler learns
    """

    path: Path
    name: str
    space: TuningSpace
    trials: int
    sampler: str
    startup: int
    seed: int


@dataclass(frozen=True)
class Tried:
    """A finished trial. state: `complete`, `pruned`, `failed` or `repeated`; value: None unless the
    trial, or the one that it repeats, is complete; error: why it failed."""

    number: int
    value: float | None
    state: str
    seconds: float
    token_forwards: int
    settings: Settings
    error: str | None = None


def run_study(
    plan: StudyPlan,
    objective: Objective,
    on_trial: Callable[[Sequence[Tried]], None] = lambda tried: None,
) -> list[Tried]:
    """All trials of a study, by number; those that it lacks are run. `on_trial` is told all that
    are finished whenever one more is.

    Raises BuildError for a file that holds no studies.
    """
    workers = Workers(plan.path, plan.name)
    with _study(plan, workers) as study, workers.joined() as number:
        while True:
            trial, unfinished = _next(plan, study, workers, number)
            if trial is not None:
                _run(plan, study, trial, objective)
            elif unfinished:
                time.sleep(PATIENCE)
            tried = _tried(plan, study)
            on_trial(tried)
            if not unfinished:
                return tried


def best_of(tried: Sequence[Tried], count: int = 1) -> list[Tried]:
    """The trials of least value, the best first, of alike settings the first only; as many as are
    asked for, or as there are."""
    valued = [trial for trial in tried if trial.value is not None and trial.state == "complete"]
    return sorted(valued, key=lambda trial: (trial.value, trial.number))[:count]


def importances(plan: StudyPlan) -> dict[str, float]:
    """By dimension, the share of what tells good trials from others; empty where trials are few.

    Source: PED-ANOVA (arXiv 2304.10255), as Optuna has it.
    """
    with _study(plan, Workers(plan.path, plan.name)) as study:
        trials = study.get_trials()[: plan.trials]
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        if len(complete) < ENOUGH or not plan.space.dimensions():
            return {}
        copy = optuna.create_study()
        copy.add_trials(complete)
        evaluator = PedAnovaImportanceEvaluator(target_quantile=GOOD)
        found = get_param_importances(copy, evaluator=evaluator)
    return {name: float(share) for name, share in found.items()}


@contextmanager
def _study(plan: StudyPlan, workers: Workers) -> Iterator[optuna.Study]:
    with quietly(plan.path), opened(plan.path, workers) as storage:
        with workers.turn:
            study = optuna.create_study(
                storage=storage,
                study_name=plan.name,
                direction="minimize",
                load_if_exists=True,
                sampler=SeededSampler(plan.sampler, plan.seed, plan.startup, starts_of(plan)),
                # All trials are judged on the same windows, so that the first of them rank trials
                # nearly as all do; of a few dozen trials, successive halving would keep too few.
                pruner=MedianPruner(n_startup_trials=plan.startup),
            )
        yield study


def starts_of(plan: StudyPlan) -> list[Point]:
    """The points of the first trials: of those that the sampler learns from first, at most two
    thirds, so that some are drawn at random."""
    return plan.space.starts()[: max(1, 2 * plan.startup // 3)]


def _next(
    plan: StudyPlan, study: optuna.Study, workers: Workers, worker: int
) -> tuple[Trial | None, bool]:
    """A trial to run, None if there is none to hand out; and whether any is unfinished."""
    with workers.turn:
        trials = study.get_trials(deepcopy=False)[: plan.trials]
        running = [trial for trial in trials if not trial.state.is_finished()]
        for left in running:
            owner = left.user_attrs.get("worker")
            if owner in (None, worker) or workers.is_gone(owner):
                return _claimed(plan, Trial(study, left._trial_id), worker), True
        if len(trials) < plan.trials:
            return _claimed(plan, study.ask(), worker), True
        return None, bool(running)


def _claimed(plan: StudyPlan, trial: Trial, worker: int) -> Trial:
    """A trial with all its settings, those that it has already among them."""
    trial.set_user_attr("worker", worker)
    for name, dimension in plan.space.dimensions().items():
        if isinstance(dimension, Choice):
            trial.suggest_categorical(name, dimension.values)
        else:
            trial.suggest_float(name, dimension.low, dimension.high, log=dimension.log)
    return trial


def _run(plan: StudyPlan, study: optuna.Study, trial: Trial, objective: Objective) -> None:
    settings = plan.space.settings(trial.params)
    plain = settings.as_dict()
    trial.set_user_attr("settings", plain)
    for earlier in study.get_trials(deepcopy=False)[: trial.number]:
        known = earlier.state.is_finished() and "repeats" not in earlier.user_attrs
        if known and earlier.user_attrs["settings"] == plain:
            _repeat(study, trial, earlier)
            return
    began, spent = time.monotonic(), 0
    state, value = TrialState.COMPLETE, math.nan
    try:
        with closing(objective(settings)) as looks:
            for step, look in enumerate(looks):
                value, spent = look.value, look.token_forwards
                if not math.isfinite(value):
                    raise ModelError("the objective is not finite")
                trial.report(value, step)
                if not look.whole and trial.should_prune():
                    state = TrialState.PRUNED
                    break
    except ModelError as error:
        state = TrialState.FAIL
        trial.set_user_attr("error", error.message)
    trial.set_user_attr("token_forwards", spent)
    trial.set_user_attr("seconds", time.monotonic() - began)
    study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)


def _repeat(study: optuna.Study, trial: Trial, earlier: FrozenTrial) -> None:
    """Give a trial the result of an earlier one."""
    trial.set_user_attr("repeats", earlier.number)
    if "error" in earlier.user_attrs:
        trial.set_user_attr("error", earlier.user_attrs["error"])
    for step, value in earlier.intermediate_values.items():
        trial.report(value, step)
    complete = earlier.state == TrialState.COMPLETE
    study.tell(trial, earlier.value if complete else None, state=earlier.state)


def _tried(plan: StudyPlan, study: optuna.Study) -> list[Tried]:
    return [
        Tried(
            number=trial.number,
            value=trial.value if trial.state == TrialState.COMPLETE else None,
            state="repeated" if "repeats" in trial.user_attrs else _STATES[trial.state],
            seconds=trial.user_attrs.get("seconds", 0.0),
            token_forwards=trial.user_attrs.get("token_forwards", 0),
            settings=Settings.from_dict(trial.user_attrs["settings"]),
            error=trial.user_attrs.get("error"),
        )
        for trial in study.get_trials(deepcopy=False)[: plan.trials]
        if trial.state.is_finished()
    ]
