# SPDX-License-Identifier: Apache-2.0
"""How sure a measurement is: intervals for means, ratios and medians of paired measurements.

Items, windows and pairs are taken as independent of each other, which neighbours in one text are
not quite. Means are resampled (bootstrap), medians get the exact interval of order statistics.
Where nothing varies an interval has no width: it then says nothing of items that were not drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from prunec.validators.measurements import Estimate

#: An interval that is less sure than this decides nothing.
LEAST_LEVEL = 0.9

_LEVEL = 0.95  # of means and ratios
_MEDIAN_LEVEL = 0.99  # of medians, from as many pairs on as allow it
_RESAMPLES = 4000
_CHUNK = 1 << 21  # indices held at once: 16 MiB

Values = Sequence[float] | NDArray[np.float64]
_Array = NDArray[np.float64]


def mean_interval(values: Values, unit: str, seed: int = 0) -> Estimate:
    """The mean of `values` [n] with a 95 % bootstrap interval.

    The bounds are NaN for fewer than two values, or where one is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    count = len(array)
    if count == 0:
        return Estimate.unknown(unit)
    if count < 2 or not np.isfinite(array).all():
        with np.errstate(invalid="ignore"):
            return Estimate(float(array.mean()), math.nan, math.nan, count, unit, _LEVEL)
    value = math.fsum(array) / count
    means = _resampled(count, seed, lambda drawn: array[drawn].mean(axis=1))
    return _between(value, means, means, count, unit)


def exp_mean_interval(differences: Values, unit: str, seed: int = 0) -> Estimate:
    """exp of the mean of `differences` [n] and of its bounds; what overflows is infinite.

    Of differences in loss between two models on the same windows: the ratio of their perplexities.
    """
    mean = mean_interval(differences, unit, seed)
    value, low, high = map(_exp, (mean.value, mean.low, mean.high))
    return Estimate(value, low, high, mean.count, unit, mean.level)


def difference_of_means(dense: Values, pruned: Values, unit: str, seed: int = 0) -> Estimate:
    """mean(pruned) − mean(dense) of scores [n] of the same items, drawn together.

    ValueError if they differ in number.
    """
    before, after = _paired(dense, pruned)
    return mean_interval(after - before, unit, seed)


def ratio_of_means(dense: Values, pruned: Values, unit: str, seed: int = 0) -> Estimate:
    """mean(pruned) ÷ mean(dense) of scores [n] of the same items, drawn together.

    NaN unless the dense mean is above 0, since no other is a yardstick. A bound is infinite where
    the dense mean is so near to 0 that resamples without a score are no rarity.
    ValueError if the scores differ in number.
    """
    before, after = _paired(dense, pruned)
    count = len(before)
    if count == 0:
        return Estimate.unknown(unit)
    with np.errstate(invalid="ignore"):
        base, top = float(before.mean()), float(after.mean())
    value = top / base if base > 0 else math.nan
    if count < 2 or not math.isfinite(value):
        return Estimate(value, math.nan, math.nan, count, unit, _LEVEL)

    def ratios(drawn: NDArray[np.int64]) -> _Array:
        bases, tops = before[drawn].mean(axis=1), after[drawn].mean(axis=1)
        known = bases > 0
        return np.where(known, tops / np.where(known, bases, 1.0), np.nan)

    found = _resampled(count, seed, ratios)
    # A resample without a dense score allows any ratio: it counts against both bounds.
    lows = np.where(np.isnan(found), -np.inf, found)
    highs = np.where(np.isnan(found), np.inf, found)
    # Scores that are never negative have no negative ratio.
    least = 0.0 if before.min() >= 0 and after.min() >= 0 else -math.inf
    return _between(value, lows, highs, count, unit, least)


def median_of_pairs(ratios: Values, unit: str) -> Estimate:
    """The median of `ratios` [n], and the two of them that hold the true one in 99 % of cases.

    Exact for any distribution: as many of n fall below the true median as heads among n tosses.
    Fewer than eight reach 99 % by no choice, so they give the smallest and the largest, and `level`
    says what that is worth (five: 0.9375). The bounds are NaN for fewer than two, or where one is
    not finite.
    """
    ordered = np.sort(np.asarray(ratios, dtype=np.float64))
    count = len(ordered)
    if count == 0:
        return Estimate.unknown(unit)
    value = float(np.median(ordered))
    if count < 2 or not np.isfinite(ordered).all():
        return Estimate(value, math.nan, math.nan, count, unit, _MEDIAN_LEVEL)
    left_out, outside = 0, 2 * 0.5**count  # ratios beyond each bound; chance of a miss
    while (more := outside + 2 * _heads(left_out + 1, count)) <= 1 - _MEDIAN_LEVEL:
        left_out, outside = left_out + 1, more
    level = min(_MEDIAN_LEVEL, 1 - outside)
    low, high = float(ordered[left_out]), float(ordered[count - 1 - left_out])
    return Estimate(value, low, high, count, unit, level)


def needed(estimate: Estimate, threshold: float) -> int | None:
    """About how many items, windows or pairs in all would show on which side of `threshold` it is.

    As if an interval narrowed with the square root of their number, and the value stayed. None
    where that is unknown, or the value is the threshold; `estimate.count` where it shows already.
    """
    value = estimate.value
    bound = estimate.low if value > threshold else estimate.high
    margin, half_width = abs(value - threshold), abs(bound - value)
    if not (math.isfinite(half_width) and math.isfinite(margin)) or margin == 0:
        return None
    share = half_width / margin
    count = estimate.count
    if share > 1:
        total = count * share * share
        if not math.isfinite(total):
            return None
        count = max(count + 1, math.ceil(total))
    if estimate.level < LEAST_LEVEL:  # so few that only the extremes are left to bound a median
        count = max(count, math.ceil(1 - math.log2(1 - LEAST_LEVEL)))
    return count


def _resampled(count: int, seed: int, statistic: Callable[[NDArray[np.int64]], _Array]) -> _Array:
    """`statistic` of resamples: it gets indices [rows, count], a resample a row, gives [rows]."""
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // count)
    parts = [
        statistic(generator.integers(0, count, (min(rows, _RESAMPLES - start), count)))
        for start in range(0, _RESAMPLES, rows)
    ]
    return np.concatenate(parts)


def _between(
    value: float, lows: _Array, highs: _Array, count: int, unit: str, least: float = -math.inf
) -> Estimate:
    """The percentile interval of resampled values, widened for small samples.

    Resamples of a few values vary less than these did by chance: bounds from them alone hold the
    true mean of five in 83 % of cases, not in 95 %. They are moved apart by what Student's
    interval is wider than the normal one; T. Hesterberg, "What teachers should know about the
    bootstrap" (2015), moves percentiles to the same effect.
    """
    tail = (1 - _LEVEL) / 2
    normal = NormalDist().inv_cdf(1 - tail)
    widening = math.sqrt(count / (count - 1)) * _student(count - 1) / normal
    # Members of the sample, not interpolated: some may be infinite.
    low = float(np.quantile(lows, tail, method="lower"))
    high = float(np.quantile(highs, 1 - tail, method="higher"))
    low = max(least, value - widening * max(0.0, value - low))
    return Estimate(value, low, value + widening * max(0.0, high - value), count, unit, _LEVEL)


def _student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, to 0.15 % of it.

    Exact for 1 and 2 degrees of freedom, Abramowitz and Stegun's 26.7.5 from 3 on.
    """
    p = (1 + _LEVEL) / 2
    if freedom == 1:
        return math.tan(math.pi * (p - 0.5))
    if freedom == 2:
        return (2 * p - 1) * math.sqrt(2 / (1 - (2 * p - 1) ** 2))
    z = NormalDist().inv_cdf(p)
    return (
        z
        + (z**3 + z) / 4 / freedom
        + (5 * z**5 + 16 * z**3 + 3 * z) / 96 / freedom**2
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384 / freedom**3
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160 / freedom**4
    )


def _heads(heads: int, tosses: int) -> float:
    """Chance of exactly so many heads."""
    return math.comb(tosses, heads) / (1 << tosses)


def _paired(dense: Values, pruned: Values) -> tuple[_Array, _Array]:
    before, after = np.asarray(dense, np.float64), np.asarray(pruned, np.float64)
    if before.shape != after.shape:
        raise ValueError(f"scores of {len(before)} and {len(after)} items are no pairs")
    return before, after


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
