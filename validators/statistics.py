# SPDX-License-Identifier: Apache-2.0
"""How sure a measurement is: intervals for means of windows and medians of paired turns.

Pairs are taken as independent of each other, and so are windows unless they are `serial`. Means
are resampled (bootstrap), medians get the exact interval of order statistics; scores of items have
`score_intervals`. Where nothing varies an interval has no width: the two models say the same in
every window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from prunec.validators.measurements import Estimate

#: An interval that is less sure than this decides nothing.
LEAST_LEVEL = 0.9

_LEVEL = 0.95  # of means
_MEDIAN_LEVEL = 0.99  # of medians, from as many pairs on as allow it
_RESAMPLES = 4000
_LEAST_RESAMPLED = 8  # values; resamples of fewer are too much alike to tell more than Student's t
_CHUNK = 1 << 21  # indices held at once: 16 MiB

Values = Sequence[float] | NDArray[np.float64]
_Array = NDArray[np.float64]


def mean_interval(values: Values, unit: str, seed: int = 0, *, serial: bool = False) -> Estimate:
    """The mean of `values` [n] with a 95 % interval: the studentised bootstrap's, and never
    narrower than Student's.

    Resamples tell how far the mean of so skewed values strays, in standard errors of its own; what
    a loss or a divergence does in a few windows would else be taken for less than it is (B. Efron
    and R. Tibshirani, "An introduction to the bootstrap", 12.5). Bounds are NaN for fewer than two
    values, or where one is not finite.

    serial: values are in the order of one text, where neighbours are alike and tell less than
    strangers. The interval is that of the means of about √n stretches then, where it is the wider.
    """
    array = np.asarray(values, dtype=np.float64)
    count = len(array)
    if count == 0:
        return Estimate.unknown(unit)
    if count < 2 or not np.isfinite(array).all():
        with np.errstate(invalid="ignore"):
            return Estimate(float(array.mean()), math.nan, math.nan, count, unit, _LEVEL)
    value = math.fsum(array) / count
    low, high = _bounds(array, value, seed)
    if serial and count >= _LEAST_RESAMPLED:
        means = np.array([part.mean() for part in np.array_split(array, math.isqrt(count))])
        middle = float(means.mean())  # nearly the value: stretches are nearly of one length
        least, most = _bounds(means, middle, seed)
        low, high = min(low, value - (middle - least)), max(high, value + (most - middle))
    return Estimate(value, low, high, count, unit, _LEVEL)


def _bounds(array: _Array, value: float, seed: int) -> tuple[float, float]:
    """Of the mean `value` of independent values [n]."""
    count = len(array)
    error = float(array.std(ddof=1)) / math.sqrt(count)
    if error <= 1e-12 * abs(value):  # rounding
        return value, value
    furthest = float(stdtrit(count - 1, (1 + _LEVEL) / 2))
    above, below = furthest, -furthest  # of the mean, in standard errors
    if count >= _LEAST_RESAMPLED:
        strays = _strays(array, value, seed)
        tail = (1 - _LEVEL) / 2
        above = max(above, float(np.quantile(strays, 1 - tail)))
        below = min(below, float(np.quantile(strays, tail)))
    return value - above * error, value - below * error


def exp_mean_interval(
    differences: Values, unit: str, seed: int = 0, *, serial: bool = False
) -> Estimate:
    """exp of the mean of `differences` [n] and of its bounds; what overflows is infinite.

    Of differences in loss between two models on the same windows: the ratio of their perplexities.
    serial: as above
    """
    mean = mean_interval(differences, unit, seed, serial=serial)
    value, low, high = map(_exp, (mean.value, mean.low, mean.high))
    return Estimate(value, low, high, mean.count, unit, mean.level)


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


def _strays(values: _Array, mean: float, seed: int) -> _Array:
    """How far the means of resamples of `values` [n] are from `mean`, each in standard errors of
    its own resample: [resamples]. One that hardly varies is not taken for surer than ten times
    these values."""
    count = len(values)
    least = float(values.std()) / math.sqrt(count) / 10
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // count)
    found = []
    for start in range(0, _RESAMPLES, rows):
        drawn = values[generator.integers(0, count, (min(rows, _RESAMPLES - start), count))]
        errors = np.maximum(least, drawn.std(axis=1, ddof=1) / math.sqrt(count))
        found.append((drawn.mean(axis=1) - mean) / errors)
    return np.concatenate(found)


def _heads(heads: int, tosses: int) -> float:
    """Chance of exactly so many heads."""
    return math.comb(tosses, heads) / (1 << tosses)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
