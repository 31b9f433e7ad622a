# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest

from prunec.validators.gates import judge_max_ratio


@pytest.mark.parametrize(
    "measured, passed, message",
    [
        (2.41, True, "perplexity ratio 2.41 is within 3.0"),
        (3.0, True, "perplexity ratio 3.00 is within 3.0"),
        (3.52, False, "perplexity ratio 3.52 exceeds 3.0"),
        (3.0001, False, "perplexity ratio 3.0001 exceeds 3.0"),
        (2.9999, True, "perplexity ratio 2.9999 is within 3.0"),
    ],
)
def test_a_ratio_is_judged_and_never_printed_as_the_threshold_it_is_not(
    measured: float, passed: bool, message: str
) -> None:
    gate = judge_max_ratio(measured, 3.0)
    assert (gate.passed, gate.message) == (passed, message)
    assert (gate.measured, gate.threshold, gate.comparison) == (measured, 3.0, "<=")


@pytest.mark.parametrize(
    "measured, said",
    [(None, "was not measured"), (math.nan, "is nan"), (math.inf, "is inf")],
)
def test_what_is_no_number_fails_and_says_so(measured: float | None, said: str) -> None:
    gate = judge_max_ratio(measured, 3.0)
    assert not gate.passed
    assert gate.measured is None
    assert gate.message == f"perplexity ratio {said}; it must be within 3.0"
