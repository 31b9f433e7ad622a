# SPDX-License-Identifier: Apache-2.0
"""Gates: a measurement against the threshold that its recipe sets, with how sure it is.

What was not measured fails. What is measured is judged by its interval: wholly on one side of the
threshold it passes or fails, across it the gate is inconclusive, and the recipe says what then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from prunec.validators.measurements import Estimate, ParityResult
from prunec.validators.statistics import LEAST_LEVEL, needed

Comparison = Literal["<=", ">="]
Verdict = Literal["passed", "failed", "inconclusive"]

_WITHIN = {"<=": "is within", ">=": "reaches"}
_BEYOND = {"<=": "exceeds", ">=": "falls short of"}
_INFINITIVE = {"<=": "be within", ">=": "reach"}
_HOPELESS = 100  # times as many items as there were: too many to name a number


@dataclass(frozen=True, slots=True)
class Amount:
    """The recipe's field that says how much is measured: `tokens: 65536`.

    each: what one more item, window or pair adds to it; value: None where the field is not set
    exhausted: there is no more to be measured
    """

    field: str
    value: int | None
    each: float = 1.0
    exhausted: bool = False


@dataclass(frozen=True, slots=True)
class Gate:
    """One judged measurement.

    `measured`, `low` and `high` are None where there is no finite number. `passed` is what the exit
    code obeys: an inconclusive gate passes only where the recipe lets it. `message` is a sentence.
    """

    name: str
    measured: float | None
    low: float | None
    high: float | None
    threshold: float
    comparison: Comparison
    verdict: Verdict
    passed: bool
    message: str


def judge(
    name: str,
    what: str,
    estimate: Estimate | None,
    threshold: float,
    comparison: Comparison,
    *,
    inconclusive_passes: bool,
    error: str | None = None,
    amount: Amount | None = None,
) -> Gate:
    """The gate on an estimate; `what` names it in the message, `error` is why there is none,
    `amount` what would settle it.

    A bound on the threshold is on the right side. An interval that is too unsure of itself, as the
    extremes of a few pairs are, is inconclusive wherever it lies.
    """
    if estimate is not None and not error and estimate.count == 0:
        error = f"there were no {estimate.unit}"
    value = None if estimate is None else estimate.value
    if unmeasured := _unmeasured(what, value, threshold, comparison, error):
        return Gate(name, None, None, None, threshold, comparison, "failed", False, unmeasured)
    assert estimate is not None  # or it would be unmeasured
    verdict = _verdict(estimate, threshold, comparison)
    return Gate(
        name,
        estimate.value,
        estimate.low if math.isfinite(estimate.low) else None,
        estimate.high if math.isfinite(estimate.high) else None,
        threshold,
        comparison,
        verdict,
        verdict == "passed" or (verdict == "inconclusive" and inconclusive_passes),
        _message(what, estimate, threshold, comparison, verdict, amount),
    )


def judge_exact(
    name: str,
    what: str,
    measured: float | None,
    threshold: float,
    comparison: Comparison,
    error: str | None = None,
) -> Gate:
    """The gate on a number that is certain, as bytes are."""
    if unmeasured := _unmeasured(what, measured, threshold, comparison, error):
        return Gate(name, None, None, None, threshold, comparison, "failed", False, unmeasured)
    assert measured is not None
    passed = measured <= threshold if comparison == "<=" else measured >= threshold
    verb = (_WITHIN if passed else _BEYOND)[comparison]
    value, limit = _apart([measured], threshold)
    message = f"{_subject(what, value)} {verb} {limit}"
    verdict: Verdict = "passed" if passed else "failed"
    return Gate(name, measured, None, None, threshold, comparison, verdict, passed, message)


def judge_parity(result: ParityResult) -> Gate:
    """The gate on an artefact's answering as the model in memory does."""
    name, error = f"parity.{result.artefact}", result.error
    what = f"the {result.artefact} artefact"
    if not error and result.compared < 1:
        error = "no tokens were compared"
    if error:
        message = f"{what} was not compared with the model in memory: {_line(error)}"
        return Gate(name, None, None, None, result.tolerance, "<=", "failed", False, message)
    tokens = f"{result.agreed:,} of {result.compared:,} greedy tokens agree"
    if not math.isfinite(result.difference):
        gap = "log-probabilities are not finite in both"
    else:
        within = result.difference <= result.tolerance
        verb = "within" if within else "beyond"
        gap = f"log-probabilities differ by up to {result.difference:.2g}, {verb} "
        gap += f"{result.tolerance:g}"
    relation = "answers" if result.same else "does not answer"
    message = f"{what} {relation} as the model in memory does: {tokens}, {gap}"
    return Gate(
        name,
        result.difference if math.isfinite(result.difference) else None,
        None,
        None,
        result.tolerance,
        "<=",
        "passed" if result.same else "failed",
        result.same,
        message,
    )


def _unmeasured(
    what: str,
    measured: float | None,
    threshold: float,
    comparison: Comparison,
    error: str | None,
) -> str | None:
    """Why there is nothing to judge, as the gate's message; None where there is."""
    if measured is not None and not math.isfinite(measured):
        error = error or f"it is {'not a number' if math.isnan(measured) else 'infinite'}"
    if not math.isfinite(threshold):  # of a dense model that was not measured, perhaps
        return f"{what} cannot be judged: its threshold is {threshold}" + _because(error)
    if measured is None or error:
        must = f"it must {_INFINITIVE[comparison]} {_plain(threshold)}"
        return f"{what} was not measured{_because(error)}; {must}"
    return None


def _because(error: str | None) -> str:
    return f": {_line(error)}" if error else ""


def _line(error: str) -> str:
    return " ".join(error.split()).rstrip(".")


def _verdict(estimate: Estimate, threshold: float, comparison: Comparison) -> Verdict:
    if math.isnan(estimate.low) or math.isnan(estimate.high) or estimate.level < LEAST_LEVEL:
        return "inconclusive"
    low, high, limit = estimate.low, estimate.high, threshold
    if comparison == ">=":
        low, high, limit = -high, -low, -limit
    return "passed" if high <= limit else "failed" if low > limit else "inconclusive"


def _message(
    what: str,
    estimate: Estimate,
    threshold: float,
    comparison: Comparison,
    verdict: Verdict,
    amount: Amount | None,
) -> str:
    value, low, high, limit = _apart([estimate.value, estimate.low, estimate.high], threshold)
    known = not (math.isnan(estimate.low) or math.isnan(estimate.high))
    interval = f" ({100 * estimate.level:.3g} %: {low} … {high})" if known else ""
    if verdict == "passed":
        return f"{_subject(what, value + interval)} {_WITHIN[comparison]} {limit}"
    if verdict == "failed":
        return f"{_subject(what, value + interval)} {_BEYOND[comparison]} {limit}"
    doubt = f"{what}, {value}{interval}, may or may not {_INFINITIVE[comparison]} {limit}"
    return f"{doubt}: {_remedy(estimate, threshold, amount)}"


def _remedy(estimate: Estimate, threshold: float, amount: Amount | None) -> str:
    """What would settle an inconclusive gate."""
    count, unit = estimate.count, estimate.unit
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        number = f"{count:,} {unit.removesuffix('s') if count == 1 else unit}"
        return f"from {number} there is no telling how sure that is"
    if estimate.value == threshold:
        return f"it lies on the threshold, which no number of {unit} would settle"
    enough = needed(estimate, threshold)
    if enough is None:
        return f"how many {unit} would settle it cannot be told from {count:,}"
    if amount and amount.exhausted:
        return f"about {_roughly(enough):,} {unit} would settle it, and all {count:,} were measured"
    if enough > _HOPELESS * count:
        return f"more than {_said(_HOPELESS * count, estimate, amount)} would be needed"
    return f"about {_said(_roughly(max(enough, count + 1)), estimate, amount)} would settle it"


def _said(more: int, estimate: Estimate, amount: Amount | None) -> str:
    """So many items instead of those that there were, as the recipe would have it if it can."""
    if amount is None or amount.value is None:
        return f"{more:,} {estimate.unit} instead of {estimate.count:,}"
    return f"`{amount.field}: {math.ceil(more * amount.each)}` instead of {amount.value}"


def _roughly(number: int) -> int:
    """Two digits of it, rounded up."""
    step: int = 10 ** max(0, len(str(number)) - 2)
    return -(-number // step) * step


def _subject(what: str, value: str) -> str:
    # "at batch 1 1.02" would be misread.
    return f"{what}, {value}," if what[-1:].isdigit() else f"{what} {value}"


def _apart(values: list[float], threshold: float) -> list[str]:
    """Numbers and, last, a threshold; all are printed on the side of it on which they are.

    At least two decimals, more where the threshold or the first number is small; integers have
    none.
    """
    limit = _plain(threshold)
    if all(isinstance(value, int) for value in values):
        return [*(f"{value:,}" for value in values), limit]
    shown = float(limit.replace(",", ""))
    different = [value for value in values if math.isfinite(value) and value != threshold]
    fewest = max(2, min(4, _decimals(values[0])), min(6, _decimals(threshold)))
    for decimals in range(fewest, 17):
        rounded = [(value, round(value, decimals)) for value in different]
        if all((x > threshold, x < threshold) == (r > shown, r < shown) for x, r in rounded):
            return [*(_fixed(value, decimals) for value in values), limit]
    return [repr(value) for value in (*values, threshold)]


def _decimals(value: float) -> int:
    """How many show two digits of a number below 1."""
    return 1 - math.floor(math.log10(abs(value))) if value else 0


def _fixed(value: float, decimals: int) -> str:
    if not math.isfinite(value):
        return "−∞" if value < 0 else "∞"
    text = f"{value:,.{decimals}f}"
    return text if text.strip("-0.,") else text.removeprefix("-")  # no "-0.00"


def _plain(threshold: float) -> str:
    """A threshold as a recipe would have it, without the noise in the digits of computed ones."""
    if threshold == int(threshold) and (isinstance(threshold, int) or abs(threshold) >= 1000):
        return f"{threshold:,.0f}"
    text = f"{threshold:,.2f}" if abs(threshold) >= 1000 else f"{threshold:.10g}"
    return f"{text}.0" if text.lstrip("-").isdigit() else text
