# SPDX-License-Identifier: Apache-2.0
"""Estimates as people read them: "1.290 … 1.330", and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from prunec.validators.measurements import Estimate
from prunec.validators.units import number

#: Stands where a number was not measured.
ABSENT = "–"


def bounds(found: Estimate, say: Callable[[float], str] = lambda value: number(value, 3)) -> str:
    """Both bounds, "unknown" where there are none, `ABSENT` where there is no value either."""
    if not math.isfinite(found.value):
        return ABSENT
    if math.isnan(found.low) or math.isnan(found.high):
        return "unknown"
    return f"{say(found.low)} … {say(found.high)}"


def level(found: Estimate) -> str:
    """0.95 → "95 %", 0.99609 → "99.6 %"; never more than it is."""
    return f"{math.floor(1000 * found.level + 1e-9) / 10:g} %"


def interval_title(estimates: Iterable[Estimate]) -> str:
    """The head of a column of intervals, with their level if it is one."""
    levels = {level(found) for found in estimates if math.isfinite(found.value)}
    return f"{levels.pop()} interval" if len(levels) == 1 else "interval"


def measured(value: float, decimals: int = 3) -> str:
    """A number of a measurement that may have failed."""
    return number(value, decimals) if math.isfinite(value) else ABSENT


def signed(value: float) -> str:
    """0.0123 → "+0.012", −0.0123 → "−0.012"."""
    if not math.isfinite(value):
        return ABSENT
    return f"{value:+.3f}".replace("-", "−")
