# SPDX-License-Identifier: Apache-2.0
"""Trials are run once each, whoever runs them and however often a build is killed."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest

from prunec.compiler.diagnostics import BuildError
from prunec.compiler.model.errors import ModelError
from prunec.compiler.tuning.settings import Settings
from prunec.compiler.tuning.space import TuningSpace
from prunec.compiler.tuning.study import Look, StudyPlan, Tried, best_of, importances, run_study

SPACE = TuningSpace(
    weights={"": 1.0},
    mixture=False,
    lengths=(64,),
    loss_quantiles=1,
    groups=1,
    damping=(0.001, 0.1),
    first_order=(0.0, 1.0),
)


def worth(settings: Settings) -> float:
    """A valley along both axes, the least value 0 at (0.3, 0.02)."""
    return (settings.first_order - 0.3) ** 2 + 0.2 * math.log10(settings.damping / 0.02) ** 2


def judged(settings: Settings) -> Generator[Look, None, None]:
    value = worth(settings)
    yield Look(0.9 * value, 10, whole=False)
    yield Look(value, 40, whole=True)


def study(folder: Path, **changes: object) -> StudyPlan:
    plan = StudyPlan(folder / "study.db", "one", SPACE, 12, "tpe", 4, 0)
    return replace(plan, **changes)  # type: ignore[arg-type]


def outcome(tried: list[Tried]) -> list[tuple[object, ...]]:
    """Everything but the time it took."""
    return [tuple(vars(replace(trial, seconds=0.0)).values()) for trial in tried]


#: A build in a process of its own: appends to a log what it runs, and does what `at` says there.
BUILD = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {here!r})
from test_study import *

def logged(settings):
    with Path({log!r}).open("a") as log:
        log.write(f"{{settings.damping!r}} {{settings.first_order!r}}\\n")
    for number, look in enumerate(judged(settings)):
        {at}
        yield look

run_study(study(Path({folder!r})), logged)
"""


def start(folder: Path, log: Path, at: str) -> subprocess.Popen[bytes]:
    here = str(Path(__file__).parent)
    code = BUILD.format(here=here, log=str(log), folder=str(folder), at=at)
    return subprocess.Popen([sys.executable, "-c", code])


def test_a_study_that_was_killed_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    log = tmp_path / "log"
    kill = f"if number == 1 and len(Path({str(log)!r}).read_text().split()) == {{}}: os._exit(9)"
    for words in (6, 18):  # in the third trial; then again, in the eighth
        build = start(tmp_path, log, kill.format(words))
        assert build.wait(60) == 9
    whole = tmp_path / "whole"
    whole.mkdir()
    resumed = run_study(study(tmp_path), judged)
    uninterrupted = run_study(study(whole), judged)
    assert outcome(resumed) == outcome(uninterrupted)
    assert [trial.number for trial in resumed] == list(range(12))
    ran = log.read_text().splitlines()
    assert ran[2] == ran[3], "the trial that was killed runs again, with the settings it had"
    assert len({*ran}) == len(ran) - 1, "no other trial is run twice"


def test_builds_that_share_a_file_share_the_trials(tmp_path: Path) -> None:
    log = tmp_path / "log"
    builds = [start(tmp_path, log, "time.sleep(0.05)") for _ in range(2)]
    assert [build.wait(60) for build in builds] == [0, 0]
    tried = run_study(study(tmp_path), refused)
    assert [trial.number for trial in tried] == list(range(12))
    repeated = sum(trial.state == "repeated" for trial in tried)
    assert len(log.read_text().splitlines()) == 12 - repeated
    assert not list(tmp_path.glob("*.0.lock"))


def refused(settings: Settings) -> Generator[Look, None, None]:
    raise AssertionError("there is no trial left to run")
    yield


def test_a_trial_of_a_live_build_is_waited_for_and_a_dead_ones_taken_over(tmp_path: Path) -> None:
    log = tmp_path / "log"
    at = f"Path({str(tmp_path / 'begun')!r}).touch(); time.sleep(1.5); os._exit(9)"
    build = start(tmp_path, log, at)
    while not (tmp_path / "begun").exists():
        assert build.poll() is None
    tried = run_study(study(tmp_path, trials=2), judged)
    assert build.wait(1) == 9, "its trial was not taken while it lived"
    assert [trial.number for trial in tried] == [0, 1]
    assert tried[0].value == pytest.approx(worth(tried[0].settings))


def test_more_trials_go_on_where_fewer_ended(tmp_path: Path) -> None:
    first = run_study(study(tmp_path, trials=6), judged)
    more = run_study(study(tmp_path), judged)
    assert outcome(more)[:6] == outcome(first)
    assert outcome(run_study(study(tmp_path, trials=6), refused)) == outcome(first)


def test_settings_that_were_tried_are_not_run_again(tmp_path: Path) -> None:
    space = replace(SPACE, damping=(0.01, 0.01), first_order=(0.0, 0.0), loss_quantiles=2)
    ran: list[Settings] = []

    def noted(settings: Settings) -> Generator[Look, None, None]:
        ran.append(settings)
        yield Look(1.0 if settings.calibration.quantile is None else 0.5, 10, whole=True)

    tried = run_study(study(tmp_path, space=space), noted)
    assert len(ran) == 3 and len(tried) == 12
    assert [trial.state for trial in tried].count("repeated") == 9
    for trial in tried:
        assert trial.value == (1.0 if trial.settings.calibration.quantile is None else 0.5)
        assert trial.token_forwards == (0 if trial.state == "repeated" else 10)
    (best,) = best_of(tried)
    assert best.state == "complete"


def test_a_trial_that_fails_is_one_that_failed(tmp_path: Path) -> None:
    def choosy(settings: Settings) -> Generator[Look, None, None]:
        if settings.first_order > 0.5:
            raise ModelError("too much")
        yield Look(math.nan if settings.damping > 0.05 else worth(settings), 5, whole=True)

    tried = run_study(study(tmp_path), choosy)
    failed = [trial for trial in tried if trial.state == "failed"]
    assert failed and len(failed) < len(tried) == 12
    assert {trial.error for trial in failed} <= {"too much", "the objective is not finite"}
    assert all(trial.value is None for trial in failed)


def test_trials_that_are_behind_stop_early_and_the_last_part_is_never_cut(tmp_path: Path) -> None:
    tried = run_study(study(tmp_path, trials=24, sampler="random"), judged)
    pruned = [trial for trial in tried if trial.state == "pruned"]
    assert 4 <= len(pruned) <= 20
    assert all(trial.value is None and trial.token_forwards == 10 for trial in pruned)
    complete = [trial for trial in tried if trial.state == "complete"]
    assert all(trial.token_forwards == 40 for trial in complete)
    assert min(worth(trial.settings) for trial in tried) == best_value(tried)


def best_value(tried: list[Tried]) -> float:
    (best,) = best_of(tried)
    assert best.value is not None
    return best.value


def test_tpe_finds_what_random_draws_do_not(tmp_path: Path) -> None:
    def found(sampler: str, seed: int) -> float:
        name = f"{sampler}-{seed}"
        return best_value(
            run_study(study(tmp_path, name=name, sampler=sampler, seed=seed, trials=24), judged)
        )

    tpe, chance = (mean(found(kind, seed) for seed in range(3)) for kind in ("tpe", "random"))
    assert tpe < 0.7 * chance


def test_importances_tell_what_counts(tmp_path: Path) -> None:
    def one_sided(settings: Settings) -> Generator[Look, None, None]:
        yield Look(10 * settings.first_order + 1e-3 * settings.damping, 1, whole=True)

    plan = study(tmp_path, trials=20, sampler="random")
    run_study(plan, one_sided)
    shares = importances(plan)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["first_order"] > 0.7
    assert importances(study(tmp_path, trials=7)) == {}


def test_a_file_that_is_no_study_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("something else entirely\n" * 100)
    with pytest.raises(BuildError, match=r"trials cannot be kept in .*study\.db"):
        run_study(study(tmp_path), judged)


def test_nothing_of_optunas_reaches_the_user(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    run_study(study(tmp_path, trials=6), judged)
    assert capfd.readouterr() == ("", "")
    assert not list(recwarn)
