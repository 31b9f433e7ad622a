# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

from prunec.compiler.measured import FinishedStep
from prunec.compiler.reporting import finalists_of
from prunec.validators.results import FinalistResult


def finished(**summary: Any) -> FinishedStep:
    return FinishedStep(summary, 0.0, 0, reused=False)


def test_the_trial_that_was_taken_is_the_finalist_that_won_not_the_best_trial() -> None:
    done = {"tune": finished(), "resolve": finished(values=[0.3, 0.1, 0.2], best=1)}
    finalists, taken = finalists_of([7, 12, 3], done)
    assert taken == 12
    assert finalists == (FinalistResult(7, 0.3), FinalistResult(12, 0.1), FinalistResult(3, 0.2))
    assert finalists_of([7, 12, 3], {"tune": finished()}) == ((), 7)


def test_places_that_no_trial_was_left_for_are_no_finalists() -> None:
    done = {"resolve": finished(values=[0.3, 0.1, 0.3], best=1)}
    assert finalists_of([7, 12], done) == ((FinalistResult(7, 0.3), FinalistResult(12, 0.1)), 12)
