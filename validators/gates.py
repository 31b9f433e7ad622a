# SPDX-License-Identifier: Apache-2.0
"""Gates: a measurement against the threshold that its recipe sets."""

from __future__ import annotations

import math
from dataclasses import dataclass

MAX_PERPLEXITY_RATIO = "perplexity.max_ratio"


@dataclass(frozen=True, slots=True)
class Gate:
    """One judged measurement. `measured` is None where there is no finite number to judge."""

    name: str
    measured: float | None
    threshold: float
    comparison: str
    passed: bool
    message: str


def judge_max_ratio(measured: float | None, max_ratio: float) -> Gate:
    """The gate on pruned perplexity over dense. No measurement, a NaN or an infinity fails it."""
    what = "perplexity ratio"
    if measured is None or not math.isfinite(measured):
        found = "was not measured" if measured is None else f"is {measured}"
        message = f"{what} {found}; it must be within {_threshold(max_ratio)}"
        return Gate(MAX_PERPLEXITY_RATIO, None, max_ratio, "<=", False, message)
    passed = measured <= max_ratio
    verb = "is within" if passed else "exceeds"
    message = f"{what} {_apart(measured, max_ratio)} {verb} {_threshold(max_ratio)}"
    return Gate(MAX_PERPLEXITY_RATIO, measured, max_ratio, "<=", passed, message)


def _apart(measured: float, threshold: float) -> str:
    """Two decimals, or as many as it takes not to print a number as equal to one that it is not."""
    for decimals in range(2, 17):
        text = f"{measured:.{decimals}f}"
        if measured == threshold or float(text) != threshold:
            return text
    return repr(measured)


def _threshold(value: float) -> str:
    return repr(float(value))
