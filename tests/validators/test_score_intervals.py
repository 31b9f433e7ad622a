# SPDX-License-Identifier: Apache-2.0
"""Intervals of scores against every table that a few items allow, published formulas, and
simulated truth."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import astuple
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from prunec.validators.measurements import Estimate
from prunec.validators.score_intervals import difference_of_scores, mean_score, ratio_of_scores

NORMAL = 1.959964  # the 97.5 % quantile, from a printed table
SIDE = 0.025  # what a bound may be wrong

#: Items right for both models, for the dense one only, for the pruned one only, for neither.
Table = tuple[int, int, int, int]


def answers(table: Table) -> tuple[list[float], list[float]]:
    """What the dense and the pruned model score on the items of a table."""
    both, dense, pruned, neither = table
    first = [1.0] * (both + dense) + [0.0] * (pruned + neither)
    return first, [1.0] * both + [0.0] * dense + [1.0] * pruned + [0.0] * neither


@cache
def difference(table: Table) -> Estimate:
    return difference_of_scores(*answers(table), "items")


@cache
def ratio(table: Table) -> Estimate:
    return ratio_of_scores(*answers(table), "items")


def tables(n: int) -> list[Table]:
    return [
        (a, b, c, n - a - b - c)
        for a, b, c in itertools.product(range(n + 1), repeat=3)
        if a + b + c <= n
    ]


def chance(table: Table, shares: tuple[float, ...]) -> float:
    """Of a table, by the multinomial distribution."""
    found = math.factorial(sum(table))
    for count in table:
        found //= math.factorial(count)
    return found * math.prod(p**k for p, k in zip(shares, table, strict=True))


def wrong(
    bounds: Callable[[Table], Estimate], among: list[Table], shares: tuple[float, ...], truth: float
) -> tuple[float, float]:
    """Chances that the low bound lies above the truth, the high one below it: false passes of
    gates whose threshold is the truth. Tables without a score of the dense model have no bounds."""
    low = high = 0.0
    for table in among:
        found, weight = bounds(table), chance(table, shares)
        low += weight * (found.low > truth + 1e-9)
        high += weight * (found.high < truth - 1e-9)
    return low, high


SHARES = (0.003, 0.02, 0.07, 0.15, 0.3, 0.6, 0.9)


@pytest.mark.parametrize("n", [5, 20])
def test_a_drop_is_never_called_less_than_it_is_more_often_than_promised(n: int) -> None:
    # Which items are right for both does not matter: they count as right for neither.
    among = [table for table in tables(n) if not table[0]]
    for lost, won in itertools.product(SHARES, (0.0, *SHARES)):
        if lost + won <= 1:
            shares = (0.0, lost, won, 1 - lost - won)
            assert max(wrong(difference, among, shares, won - lost)) <= SIDE, shares


@pytest.mark.parametrize("n", [5, 11])
def test_a_recovery_is_never_called_more_than_it_is_more_often_than_promised(n: int) -> None:
    among = tables(n)
    for lost, won, part in itertools.product(SHARES, (0.0, *SHARES), (0.0, 0.1, 0.5, 1.0)):
        both = part * (1 - lost - won)
        if lost + won <= 1 and both + won > 0:
            shares = (both, lost, won, max(0.0, 1 - both - lost - won))
            truth = (both + won) / (both + lost)
            assert max(wrong(ratio, among, shares, truth)) <= SIDE, shares


@pytest.mark.parametrize("n", [20, 100])
def test_gates_on_a_recovery_that_just_fails_hardly_ever_pass(n: int) -> None:
    # Tables are drawn, since there are too many. Few items differ, as after careful pruning.
    generator = np.random.default_rng(n)
    for lost, won, both in ((0.03, 0.0, 0.6), (0.08, 0.02, 0.5), (0.01, 0.0, 0.95)):
        drawn = generator.multinomial(n, [both, lost, won, 1 - both - lost - won], size=1500)
        counted = Counter(tuple(int(k) for k in table) for table in drawn)
        truth = (both + won) / (both + lost)
        passes = sum(count for t, count in counted.items() if ratio(t).low > truth)
        assert passes / 1500 <= SIDE + 2 * math.sqrt(SIDE / 1500)


@pytest.mark.parametrize("n", [3, 10, 60])
def test_a_score_is_never_called_more_than_it_is_more_often_than_promised(n: int) -> None:
    found = [mean_score([1.0] * k + [0.0] * (n - k), "items") for k in range(n + 1)]
    for truth in (0.001, 0.01, 0.04, 0.2, 0.5, 0.77, 0.93, 0.99, 0.999):
        weights = [math.comb(n, k) * truth**k * (1 - truth) ** (n - k) for k in range(n + 1)]
        assert sum(w for w, f in zip(weights, found, strict=True) if f.low > truth) <= SIDE
        assert sum(w for w, f in zip(weights, found, strict=True) if f.high < truth) <= SIDE


@pytest.mark.parametrize("n", [20, 100, 500])
def test_items_that_all_agree_are_not_certain(n: int) -> None:
    right = 3 * n // 5
    same = (right, 0, 0, n - right)
    found = difference(same)
    assert found.value == 0
    # Clopper and Pearson: what share of items may differ if none of n did.
    unseen = 1 - SIDE ** (1 / n)
    assert unseen <= found.high <= 1.6 * unseen
    assert found.low == pytest.approx(-found.high)
    assert ratio(same).low <= 1 - unseen / 0.6 < 1 < ratio(same).high
    perfect = mean_score([1.0] * n, "items")
    assert perfect.value == perfect.high == 1 > 1 - unseen >= perfect.low


def tango(table: Table, gap: float) -> float:
    """His statistic for a difference of `gap` (T. Tango 1998), continuity-corrected."""
    _, lost, won, _ = table
    n = sum(table)
    b = -won - lost + (2 * n - won + lost) * gap
    share = (math.sqrt(b * b + 8 * n * lost * gap * (1 - gap)) - b) / (4 * n)
    over = won - lost - n * gap
    corrected = math.copysign(max(0.0, abs(over) - 0.75 * (1 + abs(gap))), over)
    return corrected / math.sqrt(n * (2 * share + gap * (1 - gap)))


def nam_and_blackwelder(table: Table, share: float) -> float:
    """Their statistic for a ratio of `share` (2002), continuity-corrected."""
    n = sum(table)
    both, lost, won, neither = (count / n for count in table)
    new, old = both + won, both + lost
    root = math.sqrt((new - share**2 * old) ** 2 + 4 * share**2 * won * lost)
    p_won = (-new + share**2 * (old + 2 * won) + root) / (2 * share * (share + 1))
    p_lost = share * p_won - (share - 1) * (1 - neither)
    over = n * (new - share * old)
    corrected = math.copysign(max(0.0, abs(over) - 0.75 * max(1.0, share)), over)
    return corrected / math.sqrt(n * share * (p_won + p_lost))


@pytest.mark.parametrize(
    "table", [(6, 1, 0, 3), (5, 0, 0, 5), (0, 3, 0, 5), (11, 2, 4, 3), (150, 23, 9, 118)]
)
def test_bounds_are_where_the_published_statistics_say(table: Table) -> None:
    found = difference(table)
    assert tango(table, found.low) == pytest.approx(NORMAL, abs=1e-5)
    assert tango(table, found.high) == pytest.approx(-NORMAL, abs=1e-5)
    found = ratio(table)
    if found.value:
        assert nam_and_blackwelder(table, found.low) == pytest.approx(NORMAL, abs=1e-5)
    else:
        assert found.low == 0
    assert nam_and_blackwelder(table, found.high) == pytest.approx(-NORMAL, abs=1e-5)


def test_a_dense_model_without_scores_is_no_yardstick() -> None:
    assert math.isnan(ratio_of_scores([0.0] * 3, [1.0, 0.0, 1.0], "items").value)
    # Log-likelihoods: a worse model would have a ratio above 1.
    assert math.isnan(ratio_of_scores([-1.0, -2.0], [-2.0, -3.0], "items").value)
    # One right item in ten: hardly any ratio is ruled out.
    rare = ratio_of_scores([1.0] + [0.0] * 9, [1.0] * 2 + [0.0] * 8, "items")
    assert rare.value == 2.0 and rare.low < 0.2 and rare.high > 100


def test_a_pruned_model_that_scores_nothing_has_recovered_something_perhaps() -> None:
    found = ratio_of_scores([1.0] * 12 + [0.0] * 8, [0.0] * 20, "items")
    assert (found.value, found.low) == (0.0, 0.0)
    assert 0.2 < found.high < 0.6


def test_recovery_above_chance_counts_from_what_guessing_scores() -> None:
    dense, pruned = answers((250, 50, 10, 90))
    found = ratio_of_scores(dense, pruned, "items", chance=0.25)
    assert found.value == pytest.approx((0.65 - 0.25) / (0.75 - 0.25))
    # Of a chance of its own for every item, the mean counts.
    each = [0.2] * 200 + [0.3] * 200
    assert ratio_of_scores(dense, pruned, "items", chance=each).value == pytest.approx(found.value)
    plain = ratio_of_scores(dense, pruned, "items")
    assert plain.low < plain.value and found.high - found.low > plain.high - plain.low


def test_recovery_above_chance_is_unknown_for_a_model_that_may_be_guessing() -> None:
    # 12 of 40 with four choices each: no telling that this is more than luck.
    found = ratio_of_scores(*answers((10, 2, 1, 27)), "items", chance=0.25)
    assert found.value == pytest.approx(0.5)
    assert (found.low, found.high) == (-math.inf, math.inf)
    worse = ratio_of_scores(*answers((5, 2, 1, 32)), "items", chance=0.25)
    assert math.isnan(worse.value)


def test_recovery_above_chance_holds_the_true_one() -> None:
    generator = np.random.default_rng(0)
    shares, n = (0.5, 0.15, 0.05, 0.3), 120
    truth = (0.55 - 0.25) / (0.65 - 0.25)
    missed = [0, 0]
    for table in generator.multinomial(n, shares, size=500):
        both, lost, won, neither = (int(k) for k in table)
        found = ratio_of_scores(*answers((both, lost, won, neither)), "items", chance=0.25)
        missed[0] += found.low > truth
        missed[1] += found.high < truth
    assert max(missed) / 500 <= SIDE + 2 * math.sqrt(SIDE / 500)


Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]


@pytest.mark.parametrize("n", [8, 40])
@pytest.mark.parametrize(
    "draw",
    [
        lambda generator, n: generator.beta(0.3, 0.6, n),
        lambda generator, n: np.where(generator.random(n) < 0.9, 0.0, generator.random(n)),
    ],
    ids=["either-end", "mostly-0"],
)
def test_scores_between_0_and_1_are_no_surer_than_right_and_wrong(draw: Draw, n: int) -> None:
    generator = np.random.default_rng(n)
    repeats = 400
    truth = float(draw(np.random.default_rng(1), 400_000).mean())
    missed = [0, 0, 0]
    for _ in range(repeats):
        dense, pruned = draw(generator, n), draw(generator, n)
        found = mean_score(pruned, "items")
        missed[0] += found.low > truth
        missed[1] += found.high < truth
        found = difference_of_scores(dense, pruned, "items")
        missed[2] += not found.low <= 0 <= found.high
    assert max(missed[0], missed[1]) / repeats <= SIDE + 2 * math.sqrt(SIDE / repeats)
    assert missed[2] / repeats <= 2 * SIDE + 2 * math.sqrt(2 * SIDE / repeats)


def test_scores_that_have_no_limits_get_students_and_fiellers_intervals() -> None:
    values = [3.0, 4.5, 5.0, 4.0, 6.5]
    found = mean_score(values, "items")
    half = 2.776 * np.std(values, ddof=1) / math.sqrt(5)  # of the printed table, 4 degrees
    assert (found.low, found.high) == pytest.approx((4.6 - half, 4.6 + half), rel=1e-3)
    dense, pruned = np.array([3.0, 4.5, 5.0, 4.0, 6.5]), np.array([2.5, 4.5, 4.0, 3.0, 6.0])
    share = ratio_of_scores(dense, pruned, "items")
    for bound in (share.low, share.high):
        over = pruned - bound * dense
        statistic = over.mean() / (over.std(ddof=1) / math.sqrt(5))
        assert abs(statistic) == pytest.approx(2.776, rel=1e-3)
    assert share.low < share.value < share.high


def test_what_is_hard_for_both_models_cancels_in_pairs() -> None:
    generator = np.random.default_rng(0)
    hard = generator.normal(0.5, 1.0, 200)
    gap = generator.normal(0.1, 0.02, 200)
    paired = difference_of_scores(hard, hard - gap, "items")
    assert paired.value == pytest.approx(-gap.mean())
    assert paired.high - paired.low < 0.01 < 0.2 < 2 * 1.96 * hard.std() / math.sqrt(200)


def test_with_weights_every_task_of_a_group_counts_alike() -> None:
    dense = [1.0] * 30 + [0.0] * 10 + [1.0] * 4 + [0.0] * 6
    pruned = [1.0] * 20 + [0.0] * 20 + [1.0] * 4 + [0.0] * 6
    weights = [1 / 40] * 40 + [1 / 10] * 10
    assert mean_score(pruned, "items", weights).value == pytest.approx((0.5 + 0.4) / 2)
    gap = difference_of_scores(dense, pruned, "items", weights)
    assert gap.value == pytest.approx(-0.25 / 2)
    share = ratio_of_scores(dense, pruned, "items", weights=weights)
    assert share.value == pytest.approx((0.5 + 0.4) / (0.75 + 0.4))
    # The few items of the smaller task weigh most, so that fifty are not as sure as fifty alike.
    alike = difference_of_scores(dense, pruned, "items")
    assert gap.high - gap.low > 0.9 * (alike.high - alike.low)
    assert astuple(difference_of_scores(dense, pruned, "items", [0.2] * 50))[:3] == pytest.approx(
        astuple(alike)[:3]
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_kept_and_has_no_bounds(bad: float) -> None:
    values, ones = [1.0, bad, 2.0], [1.0, 1.0, 1.0]
    for found in (
        mean_score(values, "items"),
        difference_of_scores(ones, values, "items"),
        ratio_of_scores(ones, values, "items"),
    ):
        assert not math.isfinite(found.value)
        assert math.isnan(found.low) and math.isnan(found.high) and found.count == 3


def test_one_score_without_limits_has_no_interval_and_none_is_unknown() -> None:
    one = ratio_of_scores([2.0], [4.0], "items")
    assert one.value == 2.0 and one.count == 1
    assert math.isnan(one.low) and math.isnan(one.high)
    for none in (mean_score([], "items"), ratio_of_scores([], [], "items")):
        assert math.isnan(none.value) and none.count == 0


def test_scores_that_are_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 2 items"):
        difference_of_scores([1.0, 2.0, 3.0], [1.0, 2.0], "items")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_bounds_lie_around_the_value_whatever_the_scores(scale: float) -> None:
    generator = np.random.default_rng(0)
    for n in (1, 2, 3, 7, 200):
        for _ in range(25):
            table = generator.multinomial(n, generator.dirichlet([0.3] * 4))
            both, lost, won, neither = (int(count) for count in table)
            dense, pruned = (scale * np.array(s) for s in answers((both, lost, won, neither)))
            weights = generator.choice([0.1, 1.0, 5.0], n)
            for found in (
                mean_score(pruned, "items", weights),
                difference_of_scores(dense, pruned, "items", weights),
                ratio_of_scores(dense, pruned, "items", weights=weights),
                ratio_of_scores(dense, pruned, "items", chance=scale / 4),
            ):
                assert found.count == n
                if not math.isnan(found.low):
                    assert found.low <= found.value + 1e-9 and found.high >= found.value - 1e-9
