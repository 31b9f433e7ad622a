# SPDX-License-Identifier: Apache-2.0
"""How sure scores of items are: intervals for one model's mean score, and for what two models'
scores of the same items differ by, as a difference and as a ratio.

An interval holds every value that a test at 2.5 % a side does not rule out. Scores from 0 to 1,
right answers and wrong ones above all, get a score test: Tango's (1998) for differences, Nam and
Blackwelder's (2002) for ratios, Wilson's for one mean, with a continuity correction. It reckons
with items that nobody has drawn, so that items on which no two answers differ are not certain; the
chance that a bound is wrong stays below 2.5 % down to five items (tests enumerate it). Other scores
get Student's test, whose inversion for a ratio is Fieller's interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import stdtrit

from prunec.validators.measurements import Estimate

_LEVEL = 0.95
_QUANTILE = (1 + _LEVEL) / 2
_CONTINUITY = 0.75  # items; of all quarters the least that keeps to 2.5 % (tests enumerate it)
_DOUBLINGS = 60  # of a step, before a bound counts as infinite
_CERTAIN = 1e6  # stands for infinity, which a root finder cannot take

Values = Sequence[float] | NDArray[np.float64]
_Array = NDArray[np.float64]


def mean_score(scores: Values, unit: str, weights: Values | None = None) -> Estimate:
    """The mean of `scores` [n], each with its weight [n], by default all alike."""
    items = _Items.of(scores, scores, 0.0, weights)
    if items is None:
        return _unbounded(scores, _mean(scores, weights), unit)
    ends = (0.0, 1.0) if items.within_unit else (-math.inf, math.inf)
    return items.estimate(_mean(scores, weights), lambda mean: (1.0, 0.0, -mean), ends, unit)


def difference_of_scores(
    dense: Values, pruned: Values, unit: str, weights: Values | None = None
) -> Estimate:
    """mean(pruned) − mean(dense) of the same items. ValueError if they differ in number."""
    _check_pairs(dense, pruned)
    value = _mean(pruned, weights) - _mean(dense, weights)
    items = _Items.of(dense, pruned, 0.0, weights)
    if items is None:
        return _unbounded(dense, value, unit)
    ends = (-1.0, 1.0) if items.within_unit else (-math.inf, math.inf)
    return items.estimate(value, lambda gap: (1.0, -1.0, -gap), ends, unit)


def ratio_of_scores(
    dense: Values,
    pruned: Values,
    unit: str,
    *,
    chance: float | Values = 0.0,
    weights: Values | None = None,
) -> Estimate:
    """(mean(pruned) − chance) ÷ (mean(dense) − chance) of the same items.

    chance: what guessing scores, of all items or of each [n]. NaN unless the dense mean is above
    it, since no other is a yardstick; bounds are infinite where it may be below it as well.
    ValueError if the scores differ in number.
    """
    _check_pairs(dense, pruned)
    guessed = _mean(np.broadcast_to(np.asarray(chance, np.float64), len(dense)), weights)
    base, top = _mean(dense, weights) - guessed, _mean(pruned, weights) - guessed
    value = top / base if base > 0 else math.nan
    items = _Items.of(dense, pruned, chance, weights)
    if items is None or not math.isfinite(value):
        return _unbounded(dense, value, unit)
    # A ratio is the tangent of an angle, which has a right end where the ratio has none.
    never_negative = not np.any(chance) and min(np.min(dense), np.min(pruned)) >= 0
    ends = (0.0 if never_negative else -math.pi / 2, math.pi / 2)
    angles = items.estimate(
        math.atan(value),
        lambda angle: (math.cos(angle), -math.sin(angle), 0.0),
        ends,
        unit,
    )
    low, high = (_tangent(angle) for angle in (angles.low, angles.high))
    return Estimate(value, low, high, len(dense), unit, _LEVEL)


#: Of a parameter: factors of an item's pruned and dense score, and what is added, so that the sum
#: has a mean of 0 if the parameter is the true one, above 0 if it is too small.
_Contrast = Callable[[float], tuple[float, float, float]]


@dataclass(frozen=True)
class _Items:
    """Items that scored alike, counted. dense, pruned: scores above chance; all [k]."""

    dense: _Array
    pruned: _Array
    weights: _Array
    counts: _Array
    within_unit: bool

    @classmethod
    def of(
        cls, dense: Values, pruned: Values, chance: float | Values, weights: Values | None
    ) -> _Items | None:
        """None where there is nothing to estimate an interval from."""
        given = (dense, pruned, chance, 1.0 if weights is None else weights)
        columns = [np.asarray(values, np.float64) for values in given]
        table = np.stack(np.broadcast_arrays(*columns), axis=1)
        if len(table) == 0 or not np.isfinite(table).all():
            return None
        rows, counts = np.unique(table, axis=0, return_counts=True)
        within = bool(rows[:, :2].min() >= 0 and rows[:, :2].max() <= 1)
        if not within and len(table) < 2:
            return None
        if within:  # the scores that an item may have: no more is known of those not drawn
            kinds = np.unique(rows[:, 2:], axis=0)
            corners = [[x, y, *kind] for kind in kinds for x in (0.0, 1.0) for y in (0.0, 1.0)]
            rows = np.concatenate([rows, np.array(corners)])
            counts = np.concatenate([counts, np.zeros(len(corners), counts.dtype)])
        scores, guessed, weight = rows[:, :2], rows[:, 2:3], rows[:, 3]
        above = scores - guessed
        return cls(above[:, 0], above[:, 1], weight, counts.astype(np.float64), within)

    def estimate(
        self, value: float, contrast: _Contrast, ends: tuple[float, float], unit: str
    ) -> Estimate:
        """The interval of a parameter that lies between `ends`."""
        count = int(self.counts.sum())

        def statistic(parameter: float) -> float:
            of_pruned, of_dense, added = contrast(parameter)
            each = self.weights * (of_pruned * self.pruned + of_dense * self.dense + added)
            if self.within_unit:
                # The most that one item adds, or may change by with one answer.
                change = self.weights.max() * max(abs(of_pruned), abs(of_dense))
                found = _score(each, self.counts, max(change, np.abs(each).max()))
            else:
                found = _student(each, self.counts)
            return min(_CERTAIN, max(-_CERTAIN, found))

        normal = NormalDist().inv_cdf(_QUANTILE)
        critical = normal if self.within_unit else float(stdtrit(count - 1, _QUANTILE))
        low = _crossing(lambda x: statistic(x) - critical, value, ends[0])
        high = _crossing(lambda x: statistic(x) + critical, value, ends[1])
        return Estimate(value, low, high, count, unit, _LEVEL)


def _score(each: _Array, counts: _Array, step: float) -> float:
    """The score statistic of a multinomial distribution, for a mean of 0 of `each` [k].

    The total, drawn towards 0 by the continuity correction, over its standard deviation under the
    likeliest distribution whose mean is 0. step: what an item matters to the total
    """
    total = float(counts @ each)
    corrected = math.copysign(max(0.0, abs(total) - _CONTINUITY * step), total)
    if corrected == 0:
        return 0.0
    if each.max() <= 0 or each.min() >= 0:  # no distribution with both signs has that mean
        return math.copysign(math.inf, total)
    variance = float(counts.sum() * (_likeliest(each, counts) @ each**2))
    return corrected / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, total)


def _likeliest(each: _Array, counts: _Array) -> _Array:
    """Probabilities [k] that are likeliest for `counts` [k] among those for which the mean of
    `each` [k], which has both signs, is 0.

    They are counts / (n + m · each) for the m that makes the mean 0. Where m reaches the end of its
    range before, what is left goes to the cell at that end, of which nothing was counted.
    """
    n = counts.sum()
    ends = (-n / each.max() * (1 - 1e-12), -n / each.min() * (1 - 1e-12))
    seen = counts > 0

    def mean(m: float) -> float:
        return float(counts[seen] @ (each[seen] / (n + m * each[seen])))

    if mean(ends[0]) <= 0:
        m, last = ends[0], int(each.argmax())
    elif mean(ends[1]) >= 0:
        m, last = ends[1], int(each.argmin())
    else:
        m, last = float(brentq(mean, *ends)), None
    found: _Array = counts / (n + m * each)
    if last is not None:
        found[last] += 1 - found.sum()
    return found


def _student(each: _Array, counts: _Array) -> float:
    """Student's statistic, for a mean of 0 of `each` [k]."""
    n = float(counts.sum())
    mean = float(counts @ each) / n
    variance = float(counts @ (each - mean) ** 2) / (n - 1)
    if variance <= 0:
        return math.copysign(math.inf, mean) if mean else 0.0
    return mean / math.sqrt(variance / n)


def _crossing(function: Callable[[float], float], value: float, end: float) -> float:
    """Where a falling function is 0 between `value` and `end`; `end` if nowhere."""
    sign = 1 if end < value else -1
    if function(value) * sign >= 0:  # nothing varies: what is not 0 is rounding
        return value
    if not math.isfinite(end):
        limit, step, end = end, 1e-3 * max(1.0, abs(value)), value
        for _ in range(_DOUBLINGS):
            end, step = end - sign * step, 2 * step
            if function(end) * sign > 0:
                break
        else:
            return limit
    if end == value or function(end) * sign <= 0:
        return end
    return float(brentq(function, value, end))


def _tangent(angle: float) -> float:
    at_end = abs(angle) >= math.pi / 2
    return math.copysign(math.inf, angle) if at_end else math.tan(angle)


def _mean(scores: Values, weights: Values | None) -> float:
    """NaN of none."""
    array = np.asarray(scores, np.float64)
    if not len(array):
        return math.nan
    weight = np.ones(len(array)) if weights is None else np.asarray(weights, np.float64)
    with np.errstate(invalid="ignore"):
        return float(np.average(array, weights=weight))


def _unbounded(scores: Values, value: float, unit: str) -> Estimate:
    """A value of which nobody knows how sure it is."""
    if not len(scores):
        return Estimate.unknown(unit)
    return Estimate(value, math.nan, math.nan, len(scores), unit, _LEVEL)


def _check_pairs(dense: Values, pruned: Values) -> None:
    if len(dense) != len(pruned):
        raise ValueError(f"scores of {len(dense)} and {len(pruned)} items are no pairs")
