# SPDX-License-Identifier: Apache-2.0
"""What the index of tasks tells before any model is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from prunec.validators.task_checks import forbids_network, unfit_metric, without_choices

ACC = {"metric": "acc", "higher_is_better": True}
CHOICE: dict[str, Any] = {
    "task": "choice",
    "output_type": "multiple_choice",
    "metric_list": [ACC, {"metric": "acc_norm"}, {"metric": "brier", "higher_is_better": False}],
}
FREE: dict[str, Any] = {
    "task": "free",
    "output_type": "generate_until",
    "metric_list": [{"metric": "exact_match"}],
}


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("acc_nrom", "choice has no metric 'acc_nrom'; it has acc, acc_norm, brier"),
        ("brier", "less of brier is better"),
        ("exact_match,strict", "choice has no metric 'exact_match,strict'"),
    ],
)
def test_a_metric_that_a_task_does_not_have_is_refused(metric: str, said: str) -> None:
    refused = unfit_metric({"choice": [CHOICE]}, {"choice": metric})
    assert refused is not None and refused["about"] == "metrics"
    assert said in str(refused["message"])
    assert refused["hint"] == "choose acc or acc_norm"


def test_a_metric_that_a_task_has_is_taken() -> None:
    for metric in ("acc", "acc_norm", "acc,none"):
        assert unfit_metric({"choice": [CHOICE]}, {"choice": metric}) is None
    # What its own function gives shows only as it runs.
    own = CHOICE | {"process_results": "function"}
    assert unfit_metric({"choice": [own]}, {"choice": "anything"}) is None


def test_one_task_cannot_be_scored_by_two_metrics() -> None:
    leaves = {"group": [CHOICE, FREE], "choice": [CHOICE]}
    refused = unfit_metric(leaves, {"choice": "acc_norm"})
    assert refused is not None
    assert refused["message"] == (
        "choice is scored once, and asked for with its own metric for group and acc_norm for choice"
    )
    assert unfit_metric(leaves, {}) is None


def test_only_of_choices_is_it_known_what_guessing_scores() -> None:
    assert without_choices({"choice": [CHOICE]}) is None
    refused = without_choices({"group": [CHOICE, FREE]})
    assert refused is not None and refused["about"] == "chance"
    assert "free is generate_until" in str(refused["message"])


@pytest.mark.parametrize(
    ("environment", "forbids"),
    [
        ({}, False),
        ({"HF_HUB_OFFLINE": "0"}, False),
        ({"HF_HUB_OFFLINE": "1"}, True),
        ({"HF_DATASETS_OFFLINE": "true"}, True),
    ],
)
def test_the_environment_says_whether_there_is_a_network(
    environment: dict[str, str], forbids: bool
) -> None:
    assert forbids_network(environment) is forbids
