# SPDX-License-Identifier: Apache-2.0
"""What `benchmarks/search.py` makes of its results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from search_plot import median_curve
from search_results import Result, ResultFile, pairs_table, remarks

RESULT = Result(
    model="pytiny",
    sparsity=0.5,
    seed=0,
    contestant="faithful",
    settings=("method={kind: tyr, faithful: true}",),
    dense_perplexity=10.0,
    perplexity=11.0,
    excess_loss=0.1,
    evaluation_divergence=0.2,
    search_divergence=0.3,
    measured_sparsity=0.5,
    token_forwards=1000,
    search_token_forwards=800,
    seconds=50.0,
    cpu_seconds=40.0,
    peak_bytes=2**30,
    threads=1,
    jobs=2,
    curve=((100, 0.5), (800, 0.3)),
    versions={"torch": "2"},
)


def cells_of(table: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]


def test_a_pair_is_compared_seed_by_seed() -> None:
    results = []
    for seed, (ours, theirs) in enumerate([(0.05, 0.1), (0.14, 0.2), (0.33, 0.3)]):
        results.append(replace(RESULT, seed=seed, excess_loss=theirs))
        results.append(
            replace(RESULT, seed=seed, contestant="default", excess_loss=ours, token_forwards=90)
        )
    unpaired = replace(RESULT, seed=3, contestant="default")
    (row,) = cells_of(pairs_table([*results, unpaired], "faithful"))
    assert row[2:8] == ["default", "0.50, 0.70, 1.10", "0.70", "2/3", "1.00", "0.090"]


def test_no_ratio_is_shown_to_a_loss_that_is_not_above_zero() -> None:
    ours = replace(RESULT, contestant="default", excess_loss=-0.02)
    (row,) = cells_of(pairs_table([replace(RESULT, excess_loss=-0.01), ours], "faithful"))
    assert row[3:6] == ["–", "–", "1/1"]


def test_models_of_unequal_size_are_pointed_out() -> None:
    smaller = replace(RESULT, contestant="default", measured_sparsity=0.506)
    assert "NOT OF EQUAL SIZE: pytiny at 50.0%" in remarks([RESULT, smaller])[0]
    equal = replace(smaller, measured_sparsity=0.504)
    assert "agree within 0.40 percentage points" in remarks([RESULT, equal])[0]


def test_a_median_curve_begins_with_the_last_and_keeps_those_that_have_ended() -> None:
    curves = [[(10, 0.9), (20, 0.7)], [(15, 0.8), (40, 0.1)], [(10, 0.6)]]
    assert median_curve(curves) == [(15, 0.8), (20, 0.7), (40, 0.6)]


def test_results_outlive_their_run_and_do_not_oust_those_of_another(tmp_path: Path) -> None:
    one, other = (ResultFile(tmp_path / "results.json") for _ in range(2))
    one.add("a", RESULT)
    other.add("b", replace(RESULT, seed=1))
    kept = ResultFile(tmp_path / "results.json")
    assert (kept.get("a"), kept.get("b")) == (RESULT, replace(RESULT, seed=1))
