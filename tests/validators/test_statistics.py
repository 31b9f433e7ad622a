# SPDX-License-Identifier: Apache-2.0
"""Intervals against enumeration of all resamples and tosses, and against simulated truth."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import astuple

import numpy as np
import pytest

from prunec.validators import statistics
from prunec.validators.measurements import Estimate
from prunec.validators.statistics import (
    exp_mean_interval,
    mean_interval,
    median_of_pairs,
    needed,
)

# From a printed table: 97.5 % quantiles of Student's t by degrees of freedom.
STUDENT = {1: 12.706, 2: 4.303, 4: 2.776}


@pytest.mark.parametrize("values", [[0.0, 2.0], [0.3, 1.1, 4.0], [0.3, 1.1, 1.7, 4.0, 4.2]])
def test_a_mean_of_few_values_has_students_interval(values: list[float]) -> None:
    n = len(values)
    mean = sum(values) / n
    error = math.sqrt(sum((x - mean) ** 2 for x in values) / (n - 1) / n)
    found = mean_interval(values, "windows")
    assert found.value == pytest.approx(mean)
    assert (found.low, found.high) == pytest.approx(
        (mean - STUDENT[n - 1] * error, mean + STUDENT[n - 1] * error), abs=1e-3
    )
    assert (found.count, found.unit, found.level) == (n, "windows", 0.95)


def test_a_mean_of_skewed_values_has_the_interval_that_all_its_resamples_give() -> None:
    values = [0.1, 0.2, 0.2, 0.3, 0.4, 0.5, 1.2, 2.9]
    n, mean = len(values), sum(values) / len(values)

    def spread(drawn: list[float]) -> float:
        middle = sum(drawn) / n
        return math.sqrt(sum((x - middle) ** 2 for x in drawn) / (n - 1) / n)

    strays: list[tuple[float, int]] = []  # in standard errors, and how many resamples are alike
    for places in itertools.combinations_with_replacement(range(n), n):
        drawn = [values[place] for place in places]
        alike = math.factorial(n)
        for count in Counter(places).values():
            alike //= math.factorial(count)
        error = max(spread(drawn), spread(values) * math.sqrt((n - 1) / n) / 10)
        strays.append(((sum(drawn) / n - mean) / error, alike))
    strays.sort()
    below, gone = strays[0][0], 0
    for stray, alike in strays:
        gone += alike
        if gone > 0.025 * n**n:
            below = stray
            break
    found = mean_interval(values, "windows")
    assert found.high == pytest.approx(mean - below * spread(values), rel=0.05)
    # Towards the short tail Student's is the wider one.
    assert found.low == pytest.approx(mean - 2.365 * spread(values), abs=1e-3)


@pytest.mark.parametrize("count", [2, 5, 12, 80])
def test_the_interval_of_a_mean_holds_the_true_one_about_95_times_in_100(count: int) -> None:
    generator = np.random.default_rng(count)
    held = 0
    for repeat in range(500):
        found = mean_interval(generator.normal(3, 2, count), "items", seed=repeat)
        held += found.low <= 3 <= found.high
    assert 0.92 <= held / 500 <= 0.98


@pytest.mark.parametrize(("count", "most"), [(8, 0.06), (16, 0.06), (64, 0.05)])
def test_means_of_skewed_values_are_hardly_ever_called_smaller_than_they_are(
    count: int, most: float
) -> None:
    # As divergences of windows: a few are far larger than the rest. Student's interval alone lies
    # too low 8, 8 and 5 times in 100, and the percentiles of resampled means no less often.
    generator = np.random.default_rng(count)
    passes = sum(
        mean_interval(generator.exponential(1.0, count), "windows", seed=repeat).high < 1
        for repeat in range(600)
    )
    assert passes / 600 <= most


def test_neighbours_that_are_alike_tell_less_than_strangers() -> None:
    generator = np.random.default_rng(0)
    held = {False: 0, True: 0}
    for repeat in range(150):
        values = [0.0]
        for noise in generator.normal(0, 1, 249):  # 0.6 of a window's excess is its neighbour's too
            values.append(0.6 * values[-1] + noise)
        for serial in held:
            found = mean_interval(values[50:], "windows", seed=repeat, serial=serial)
            held[serial] += found.low <= 0 <= found.high
    assert held[False] / 150 < 0.75 < 0.88 < held[True] / 150
    strangers = generator.normal(0, 1, 400)
    plain, serial_too = (mean_interval(strangers, "windows", serial=s) for s in (False, True))
    assert serial_too.low <= plain.low and serial_too.high >= plain.high
    assert serial_too.high - serial_too.low < 1.6 * (plain.high - plain.low)
    assert serial_too.value == plain.value and serial_too.count == 400


def test_a_copy_is_exactly_as_good_on_text() -> None:
    scores = np.random.default_rng(0).random(37)
    assert astuple(mean_interval(scores - scores, "windows"))[:3] == (0.0, 0.0, 0.0)
    assert astuple(exp_mean_interval(scores - scores, "windows"))[:3] == (1.0, 1.0, 1.0)


def test_a_ratio_of_perplexities_is_exp_of_the_mean_difference_in_loss() -> None:
    differences = [0.1, 0.3, 0.2, 0.4, 0.25]
    mean, ratio = mean_interval(differences, "windows"), exp_mean_interval(differences, "windows")
    expected = [math.exp(x) for x in (mean.value, mean.low, mean.high)]
    assert [ratio.value, ratio.low, ratio.high] == expected
    assert exp_mean_interval([800.0, 900.0, 1000.0], "windows").value == math.inf


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_kept_and_has_no_bounds(bad: float) -> None:
    values = [1.0, bad, 2.0]
    for found in (
        mean_interval(values, "items"),
        exp_mean_interval(values, "items"),
    ):
        assert not math.isfinite(found.value)
        assert math.isnan(found.low) and math.isnan(found.high) and found.count == 3
    assert math.isnan(median_of_pairs([1.0, 2.0, math.nan], "pairs").low)


def test_one_value_has_no_interval_and_none_is_unknown() -> None:
    one = mean_interval([2.0], "items")
    assert one.value == 2.0 and one.count == 1
    assert math.isnan(one.low) and math.isnan(one.high)
    none = mean_interval([], "items")
    assert math.isnan(none.value) and none.count == 0
    assert median_of_pairs([], "pairs").count == 0


def test_memory_is_bounded_without_changing_what_comes_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = np.random.default_rng(0).random(50)
    whole = mean_interval(values, "items")
    monkeypatch.setattr(statistics, "_CHUNK", 777)
    assert mean_interval(values, "items") == whole


@pytest.mark.parametrize("count", [2, 3, 5, 7, 8, 9, 11, 12, 14])
def test_the_interval_of_a_median_is_the_narrowest_that_all_tosses_allow(count: int) -> None:
    heads = [sum(tosses) for tosses in itertools.product((0, 1), repeat=count)]

    def coverage(left_out: int) -> float:
        return sum(left_out < h < count - left_out for h in heads) / len(heads)

    found = median_of_pairs([float(index) for index in range(count)], "pairs")
    left_out = round(found.low)
    assert found.high == count - 1 - left_out
    assert found.value == (count - 1) / 2
    assert coverage(left_out + 1) < 0.99
    assert found.level == pytest.approx(min(0.99, coverage(left_out)))
    assert left_out == 0 or coverage(left_out) >= 0.99


@pytest.mark.parametrize(("count", "most"), [(8, 0.014), (9, 0.01), (20, 0.014), (50, 0.014)])
def test_identical_artefacts_are_hardly_ever_called_faster_or_slower(
    count: int, most: float
) -> None:
    generator = np.random.default_rng(count)
    # Noise as of timings: skewed, with a straggler now and then.
    alarms = 0
    for _ in range(2000):
        dense, pruned = 1 + generator.exponential(0.05, (2, count))
        pruned[generator.random(count) < 0.05] *= 3
        dense[generator.random(count) < 0.05] *= 3
        found = median_of_pairs(dense / pruned, "pairs")
        alarms += not found.low <= 1 <= found.high
    assert alarms / 2000 <= most


def test_five_pairs_say_what_they_are_worth() -> None:
    found = median_of_pairs([1.02, 0.97, 1.08, 1.0, 1.01], "pairs")
    assert astuple(found) == (1.01, 0.97, 1.08, 5, "pairs", 0.9375)


def test_half_the_margin_needs_four_times_as_many() -> None:
    estimate = Estimate(1.0, 0.8, 1.2, 25, "items")
    assert needed(estimate, 1.1) == needed(estimate, 0.9) == 100
    assert needed(estimate, 1.05) == 400
    assert needed(estimate, 1.5) == 25  # it shows already
    assert needed(Estimate(1.0, 0.9, 1.4, 25, "items"), 0.95) == 100  # the side that faces it


def test_with_as_many_as_are_needed_the_interval_ends_about_at_the_threshold() -> None:
    generator = np.random.default_rng(0)
    first = mean_interval(generator.normal(0, 1, 60), "items")
    margin = (first.value - first.low) / 4
    enough = needed(first, first.value - margin)
    assert enough == pytest.approx(16 * 60, abs=1)
    then = mean_interval(generator.normal(0, 1, enough), "items")
    assert then.value - then.low == pytest.approx(margin, rel=0.25)


def test_nobody_knows_how_many_are_needed_without_bounds_or_on_the_threshold() -> None:
    assert needed(Estimate(1.0, math.nan, math.nan, 1, "windows"), 1.1) is None
    assert needed(Estimate.unknown("items"), 1.1) is None
    assert needed(Estimate(1.0, 0.9, 1.1, 9, "pairs"), 1.0) is None
    assert needed(Estimate(1.0, 0.9, math.inf, 9, "pairs"), 1.1) is None


def test_a_few_pairs_that_agree_need_company() -> None:
    assert needed(median_of_pairs([1.5, 1.6], "pairs"), 1.2) == 5
