# SPDX-License-Identifier: Apache-2.0
"""Intervals against enumeration of all resamples and tosses, and against simulated truth."""

from __future__ import annotations

import itertools
import math
from dataclasses import astuple

import numpy as np
import pytest

from prunec.validators import statistics
from prunec.validators.measurements import Estimate
from prunec.validators.statistics import (
    difference_of_means,
    exp_mean_interval,
    mean_interval,
    median_of_pairs,
    needed,
    ratio_of_means,
)

# From printed tables: 97.5 % quantiles of Student's t by degrees of freedom, and of the normal.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 10: 2.228, 30: 2.042, 120: 1.980}
NORMAL = 1.959964


def percentiles(values: list[float]) -> tuple[float, float]:
    """The values that 2.5 % lie below, and above: plain counting."""
    ordered = sorted(values)
    return ordered[int(0.025 * len(ordered))], ordered[-1 - int(0.025 * len(ordered))]


def widened(value: float, bounds: tuple[float, float], n: int) -> tuple[float, float]:
    factor = STUDENT[n - 1] / NORMAL * math.sqrt(n / (n - 1))
    return value - factor * (value - bounds[0]), value + factor * (bounds[1] - value)


@pytest.mark.parametrize("values", [[0.0, 2.0], [0.3, 1.1, 4.0], [0.3, 1.1, 1.7, 4.0, 4.2]])
def test_a_mean_has_the_interval_that_all_its_resamples_give(values: list[float]) -> None:
    n = len(values)
    means = [sum(drawn) / n for drawn in itertools.product(values, repeat=n)]
    found = mean_interval(values, "windows")
    assert found.value == pytest.approx(sum(values) / n)
    expected = widened(sum(values) / n, percentiles(means), n)
    assert (found.low, found.high) == pytest.approx(expected, abs=0.15)
    assert (found.count, found.unit, found.level) == (n, "windows", 0.95)


def test_a_ratio_has_the_interval_that_all_paired_resamples_give() -> None:
    dense, pruned = [0.2, 0.5, 0.9, 1.0, 0.7], [0.1, 0.5, 0.6, 0.9, 0.2]
    pairs = list(zip(dense, pruned, strict=True))
    ratios = [
        sum(after for _, after in drawn) / sum(before for before, _ in drawn)
        for drawn in itertools.product(pairs, repeat=5)
    ]
    found = ratio_of_means(dense, pruned, "items")
    assert found.value == pytest.approx(2.3 / 3.3)
    expected = widened(2.3 / 3.3, percentiles(ratios), 5)
    assert (found.low, found.high) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("freedom", STUDENT)
def test_students_quantiles_are_those_of_the_printed_table(freedom: int) -> None:
    assert statistics._student(freedom) == pytest.approx(STUDENT[freedom], rel=0.0015)


@pytest.mark.parametrize("count", [2, 5, 12, 80])
def test_the_interval_of_a_mean_holds_the_true_one_about_95_times_in_100(count: int) -> None:
    generator = np.random.default_rng(count)
    held = 0
    for repeat in range(500):
        found = mean_interval(generator.normal(3, 2, count), "items", seed=repeat)
        held += found.low <= 3 <= found.high
    assert 0.92 <= held / 500 <= 0.98


def test_the_interval_of_a_ratio_of_scores_holds_the_true_one_about_95_times_in_100() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for repeat in range(500):
        easy = generator.random(100)  # what makes an item easy makes it so for both models
        dense = (easy + 0.2 * generator.random(100) > 0.5).astype(float)
        pruned = np.where(generator.random(100) < 0.8, dense, generator.random(100) < 0.3)
        found = ratio_of_means(dense, pruned, "items", seed=repeat)
        held += found.low <= 0.8 + 0.2 * 0.3 / 0.6 <= found.high
    assert 0.92 <= held / 500 <= 0.98


def test_what_is_hard_for_both_models_cancels_in_pairs() -> None:
    generator = np.random.default_rng(0)
    hard = generator.normal(0.5, 1.0, 200)
    gap = generator.normal(0.1, 0.02, 200)
    paired = difference_of_means(hard, hard - gap, "items")
    assert paired.value == pytest.approx(-gap.mean())
    assert paired.high - paired.low < 0.01 < 0.2 < 2 * 1.96 * hard.std() / math.sqrt(200)


def test_a_copy_is_exactly_as_good() -> None:
    scores = np.random.default_rng(0).random(37)
    assert astuple(difference_of_means(scores, scores, "items"))[:3] == (0.0, 0.0, 0.0)
    assert astuple(ratio_of_means(scores, scores, "items"))[:3] == (1.0, 1.0, 1.0)
    assert astuple(exp_mean_interval(scores - scores, "windows"))[:3] == (1.0, 1.0, 1.0)


def test_a_ratio_of_perplexities_is_exp_of_the_mean_difference_in_loss() -> None:
    differences = [0.1, 0.3, 0.2, 0.4, 0.25]
    mean, ratio = mean_interval(differences, "windows"), exp_mean_interval(differences, "windows")
    expected = [math.exp(x) for x in (mean.value, mean.low, mean.high)]
    assert [ratio.value, ratio.low, ratio.high] == expected
    assert exp_mean_interval([800.0, 900.0, 1000.0], "windows").value == math.inf


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_kept_and_has_no_bounds(bad: float) -> None:
    values, ones = [1.0, bad, 2.0], [1.0, 1.0, 1.0]
    for found in (
        mean_interval(values, "items"),
        exp_mean_interval(values, "items"),
        difference_of_means(ones, values, "items"),
        ratio_of_means(ones, values, "items"),
    ):
        assert not math.isfinite(found.value)
        assert math.isnan(found.low) and math.isnan(found.high) and found.count == 3
    assert math.isnan(median_of_pairs([1.0, 2.0, math.nan], "pairs").low)


def test_one_value_has_no_interval_and_none_is_unknown() -> None:
    for found in (mean_interval([2.0], "items"), ratio_of_means([2.0], [4.0], "items")):
        assert found.value == 2.0 and found.count == 1
        assert math.isnan(found.low) and math.isnan(found.high)
    for none in (mean_interval([], "items"), ratio_of_means([], [], "items")):
        assert math.isnan(none.value) and none.count == 0
    assert median_of_pairs([], "pairs").count == 0


def test_a_dense_model_without_scores_is_no_yardstick() -> None:
    assert math.isnan(ratio_of_means([0.0, 0.0, 0.0], [1.0, 0.0, 1.0], "items").value)
    # Log-likelihoods: a worse model would have a ratio above 1.
    assert math.isnan(ratio_of_means([-1.0, -2.0], [-2.0, -3.0], "items").value)
    # One item in ten: a third of the resamples have no dense score, so that nothing bounds it.
    rare = ratio_of_means([1.0] + [0.0] * 9, [1.0] * 2 + [0.0] * 8, "items")
    assert (rare.value, rare.low, rare.high) == (2.0, 0.0, math.inf)


def test_scores_that_are_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 2 items"):
        difference_of_means([1.0, 2.0, 3.0], [1.0, 2.0], "items")


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
