# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunec.validators.gates import Comparison, Gate, judge, judge_exact, judge_parity
from prunec.validators.measurements import Estimate, ParityResult

RATIO = Estimate(1.31, 1.29, 1.33, 240, "windows")
SPEEDUP = Estimate(1.02, 0.97, 1.08, 9, "pairs", 0.99)
PARITY = ParityResult("onnx", 0.0003, 0.01, 32, 32)


def judged(
    what: str,
    estimate: Estimate | None,
    threshold: float,
    comparison: Comparison,
    error: str | None = None,
) -> Gate:
    """The gate, strict; that a lenient one differs in `passed` alone is checked on the way."""
    strict, lenient = (
        judge(
            "a.gate",
            what,
            estimate,
            threshold,
            comparison,
            inconclusive_passes=lets,
            error=error,
        )
        for lets in (False, True)
    )
    assert strict.passed == (strict.verdict == "passed")
    assert lenient == replace(strict, passed=strict.verdict != "failed")
    return strict


@pytest.mark.parametrize(
    ("threshold", "comparison", "verdict", "message"),
    [
        (1.5, "<=", "passed", "perplexity ratio 1.31 (95 %: 1.29 … 1.33) is within 1.5"),
        (1.2, "<=", "failed", "perplexity ratio 1.31 (95 %: 1.29 … 1.33) exceeds 1.2"),
        (1.2, ">=", "passed", "perplexity ratio 1.31 (95 %: 1.29 … 1.33) reaches 1.2"),
        (1.5, ">=", "failed", "perplexity ratio 1.31 (95 %: 1.29 … 1.33) falls short of 1.5"),
        (1.33, "<=", "passed", "perplexity ratio 1.31 (95 %: 1.29 … 1.33) is within 1.33"),
        (1.29, ">=", "passed", "perplexity ratio 1.31 (95 %: 1.29 … 1.33) reaches 1.29"),
        (
            1.32,
            "<=",
            "inconclusive",
            "perplexity ratio, 1.31 (95 %: 1.29 … 1.33), may or may not be within 1.32: "
            "about 960 windows instead of 240 would settle it",
        ),
        # A bound on the threshold is on the right side of it, so this may pass yet.
        (
            1.29,
            "<=",
            "inconclusive",
            "perplexity ratio, 1.31 (95 %: 1.29 … 1.33), may or may not be within 1.29: "
            "about 250 windows instead of 240 would settle it",
        ),
    ],
)
def test_an_estimate_is_judged_by_its_interval(
    threshold: float, comparison: Comparison, verdict: str, message: str
) -> None:
    gate = judged("perplexity ratio", RATIO, threshold, comparison)
    assert (gate.verdict, gate.message) == (verdict, message)
    assert (gate.measured, gate.low, gate.high) == (1.31, 1.29, 1.33)
    assert (gate.name, gate.threshold, gate.comparison) == ("a.gate", threshold, comparison)


def test_a_speedup_inside_its_noise_says_what_would_settle_it() -> None:
    gate = judged("decode speedup in vllm at batch 1", SPEEDUP, 1.05, ">=")
    assert gate.verdict == "inconclusive"
    assert gate.message == (
        "decode speedup in vllm at batch 1, 1.02 (99 %: 0.97 … 1.08), may or may not reach 1.05: "
        "about 36 pairs instead of 9 would settle it"
    )
    # Where the name ends in a number, the value is set apart from it.
    sure = judged("decode speedup in vllm at batch 1", SPEEDUP, 0.9, ">=")
    assert "at batch 1, 1.02 (99 %: 0.97 … 1.08), reaches 0.9" in sure.message


@pytest.mark.parametrize(
    ("estimate", "threshold", "why"),
    [
        (
            Estimate(1.31, math.nan, math.nan, 1, "windows"),
            1.5,
            "1.31, may or may not be within 1.5: from 1 window there is no telling how sure",
        ),
        (replace(RATIO, value=1.3), 1.3, "it lies on the threshold, which no number of windows"),
        (replace(RATIO, value=1.3001), 1.3, "more than 24,000 windows instead of 240 would be"),
        (
            replace(RATIO, high=math.inf),
            1.5,
            "(95 %: 1.29 … ∞), may or may not be within 1.5: how many windows would settle it",
        ),
        # Two pairs that agree: an interval, but one that misses the truth every other time.
        (Estimate(1.2, 1.1, 1.3, 2, "pairs", 0.5), 1.5, "about 5 pairs instead of 2"),
        (Estimate(2.2, 2.1, 2.3, 4, "pairs", 0.875), 1.5, "about 5 pairs instead of 4"),
    ],
)
def test_what_cannot_be_told_is_inconclusive_and_says_why(
    estimate: Estimate, threshold: float, why: str
) -> None:
    gate = judged("perplexity ratio", estimate, threshold, "<=")
    assert gate.verdict == "inconclusive"
    assert why in gate.message


@pytest.mark.parametrize(
    ("estimate", "error", "said"),
    [
        (None, None, "recovery was not measured; it must reach 0.9"),
        (
            None,
            "the task\nis not\tthere.",
            "recovery was not measured: the task is not there; it must reach 0.9",
        ),
        (Estimate(0.95, 0.94, 0.96, 10, "items"), "crashed", "was not measured: crashed"),
        (Estimate.unknown("items"), None, "was not measured: there were no items"),
        (Estimate(math.nan, 0.9, 1.0, 5, "items"), None, "was not measured: it is not a number"),
        (Estimate(math.inf, math.nan, math.nan, 5, "items"), None, "measured: it is infinite"),
    ],
)
def test_what_was_not_measured_fails_whatever_is_inconclusive(
    estimate: Estimate | None, error: str | None, said: str
) -> None:
    gate = judged("recovery", estimate, 0.9, ">=", error)
    assert (gate.verdict, gate.measured, gate.low, gate.high) == ("failed", None, None, None)
    assert said in gate.message


def test_a_threshold_that_is_no_number_fails() -> None:
    # A share of what the dense model scored, and that was not measured.
    for gate in (
        judged("score", RATIO, math.nan, ">="),
        judge_exact("size.max_bytes", "bytes", 5, math.nan, "<="),
    ):
        assert gate.verdict == "failed"
        assert "its threshold is nan" in gate.message


def test_an_interval_of_no_width_is_sure() -> None:
    copy = Estimate(1.0, 1.0, 1.0, 64, "windows")
    assert judged("perplexity ratio", copy, 1.0, "<=").verdict == "passed"
    assert judged("perplexity ratio", copy, 1.0, ">=").verdict == "passed"
    assert judged("perplexity ratio", copy, 0.999, "<=").verdict == "failed"


def test_a_gate_is_plain_data() -> None:
    gate = judged("speedup", replace(SPEEDUP, low=-math.inf, high=math.inf), 1.05, ">=")
    assert json.loads(json.dumps(asdict(gate), allow_nan=False)) == {
        "name": "a.gate",
        "measured": 1.02,
        "low": None,
        "high": None,
        "threshold": 1.05,
        "comparison": ">=",
        "verdict": "inconclusive",
        "passed": False,
        "message": gate.message,
    }


FINITE = st.floats(-1e6, 1e6)
NEAR = st.just(0.0) | st.floats(-1e-12, 1e-12) | st.floats(-0.02, 0.02) | FINITE


@given(st.tuples(FINITE, FINITE, FINITE).map(sorted), st.integers(0, 2), NEAR)
def test_numbers_are_printed_on_the_side_of_the_threshold_on_which_they_are(
    bounds: list[float], nearest: int, off: float
) -> None:
    low, value, high = bounds
    threshold = bounds[nearest] + off
    gate = judged("score", Estimate(value, low, high, 50, "items"), threshold, "<=")
    number = r"-?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"
    texts = re.findall(number, gate.message.replace("95 %", ""))
    *said, limit = (float(text.replace(",", "")) for text in texts[:4])
    for shown, true in zip(said, (value, low, high), strict=True):
        assert shown == pytest.approx(true, abs=0.00501)
        if true != threshold:
            assert (shown > limit, shown < limit) == (true > threshold, true < threshold)


@pytest.mark.parametrize(
    ("value", "threshold", "said"),
    [
        (0.0031, 0.05, "0.0031 (95 %: 0.0031 … 0.0031) is within 0.05"),
        (0.0, 0.05, "0.000 (95 %: 0.000 … 0.000) is within 0.05"),
        (-1e-9, 0.5, "0.0000 (95 %: 0.0000 … 0.0000) is within 0.5"),
        (1234.5, 2e3, "1,234.50 (95 %: 1,234.50 … 1,234.50) is within 2,000"),
        (2.9999, 3.0, "2.9999 (95 %: 2.9999 … 2.9999) is within 3.0"),
        (0.1, 0.7 * 3, "0.10 (95 %: 0.10 … 0.10) is within 2.1"),
        (0.3, 0.1 + 0.2, "0.3 (95 %: 0.3 … 0.3) is within 0.30000000000000004"),
    ],
)
def test_numbers_have_the_digits_that_they_need(value: float, threshold: float, said: str) -> None:
    estimate = Estimate(value, value, value, 9, "items")
    assert judged("score", estimate, threshold, "<=").message == f"score {said}"


@pytest.mark.parametrize(
    ("measured", "threshold", "passed", "message"),
    [
        (8_009_864, 9e6, True, "weights in bytes 8,009,864 is within 9,000,000"),
        (8_009_864, 8_009_864, True, "weights in bytes 8,009,864 is within 8,009,864"),
        (8_009_865, 8_009_864, False, "weights in bytes 8,009,865 exceeds 8,009,864"),
        (None, 9e6, False, "weights in bytes was not measured; it must be within 9,000,000"),
        (math.nan, 9e6, False, "weights in bytes was not measured: it is not a number; it must"),
    ],
)
def test_bytes_are_judged_exactly(
    measured: float | None, threshold: float, passed: bool, message: str
) -> None:
    gate = judge_exact("size.max_bytes", "weights in bytes", measured, threshold, "<=")
    assert gate.passed == passed == (gate.verdict == "passed")
    assert gate.message.startswith(message)
    assert (gate.low, gate.high) == (None, None)


def test_a_size_that_could_not_be_read_fails_with_its_reason() -> None:
    gate = judge_exact("size.max_bytes", "size", 5, 9e6, "<=", error="there is no vllm/")
    assert not gate.passed
    assert gate.message == "size was not measured: there is no vllm/; it must be within 9,000,000"


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (PARITY, "answers as the model in memory does: 32 of 32 greedy tokens agree, "),
        (
            replace(PARITY, agreed=31),
            "does not answer as the model in memory does: 31 of 32 greedy",
        ),
        (replace(PARITY, difference=0.2), "log-probabilities differ by up to 0.2, beyond 0.01"),
        (replace(PARITY, difference=math.nan), "log-probabilities are not finite in both"),
        (replace(PARITY, agreed=0, compared=0), "no tokens were compared"),
        (replace(PARITY, error="no\nonnxruntime"), "was not compared with the model in memory"),
    ],
)
def test_an_artefact_is_its_model_only_if_all_of_it_agrees(result: ParityResult, said: str) -> None:
    gate = judge_parity(result)
    assert gate.name == "parity.onnx"
    assert gate.passed == (result is PARITY) == (gate.verdict == "passed")
    assert gate.message.startswith("the onnx artefact ")
    assert said in gate.message
