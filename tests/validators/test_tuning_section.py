# SPDX-License-Identifier: Apache-2.0
"""What a report says and shows of a tuning."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunec.validators.blocks import Figure
from prunec.validators.card import measured_section
from prunec.validators.markdown import markdown, markdown_table
from prunec.validators.picture_of_tuning import describe_tuning, draw_tuning
from prunec.validators.pictures import pictures_of
from prunec.validators.results import Report, TrialResult, TuningResult
from prunec.validators.saved import read_report
from prunec.validators.sections_of_tuning import tuning as tuning_section
from prunec.validators.themes import LIGHT
from prunec.validators.tuned_settings import side_by_side


def curves(tuning: TuningResult) -> dict[str, list[list[float]]]:
    """What is drawn in the panel of trials, by its label."""
    return {
        str(line.get_label()): np.asarray(line.get_xydata()).tolist()
        for line in draw_tuning(tuning).axes[0].lines
    }


def test_the_best_is_set_beside_what_chance_found_and_what_it_took(full_report: Report) -> None:
    lines = markdown(full_report).splitlines()
    for said in (
        "Settings were found by TPE in 6 trials. Divergence on text that no trial was calibrated "
        "on, nats per token: 0.5000 (trial 4); 0.7000 the best of the 2 trials before the sampler "
        "learned, 0.7000 the median of all.",
        "| metrics | obs 75 %, wanda 25 % |",
        "| exponent | 0.5 |",
        "| aggregation | \\<max> |",
        "| loss class, easiest first | 1 of 3 |",
        "Of 6 trials, 3 measured in full, 1 stopped early, 1 failed, 1 repeated earlier settings.",
        "A trial took 6.0 s and 16,384 token-forwards (medians), all of them 30.0 s and "
        "81,920 token-forwards. The statistics that all trials share took 393,216 token-forwards, "
        "once.",
    ):
        assert said in lines
    card = measured_section(full_report)
    assert "### Tuning" in card and "| exponent | 0.5 |" in card


def test_the_best_trials_stand_beside_each_other(full_report: Report) -> None:
    section = tuning_section(full_report)
    assert section
    [figure] = [block for block in section.blocks if isinstance(block, Figure)]
    assert figure.table
    assert markdown_table(figure.table).splitlines() == [
        "|  | trial 4 | trial 1 | trial 0 |",
        "| --- | ---: | ---: | ---: |",
        "| divergence | 0.5000 | 0.7000 | 0.9000 |",
        "| weight of obs | 75 % | 75 % | 75 % |",
        "| weight of wanda | 25 % | 25 % | 25 % |",
        "| exponent | 0.5 | 2 | 1 |",
        "| aggregation | \\<max> | – | – |",
        "| loss class, easiest first | 1 of 3 | – | – |",
    ]


def test_a_weight_that_a_trial_leaves_out_is_none() -> None:
    rows = side_by_side([{"metric.obs": 1.0}, {"metric.obs": 0.4, "metric.wanda": 1.6}, {"a": 2.0}])
    assert rows == [
        ("weight of obs", "100 %", "20 %", "–"),
        ("weight of wanda", "0 %", "80 %", "–"),
        ("a", "–", "–", "2"),
    ]


def test_partial_values_of_trials_that_stopped_early_are_not_compared(
    tuning: TuningResult,
) -> None:
    drawn = curves(tuning)
    assert drawn["best so far"] == [[0, 0.9], [1, 0.7], [4, 0.5], [5, 0.5], [5, 0.5]]
    assert drawn["measured in full"] == [[0, 0.9], [1, 0.7], [4, 0.5]]
    assert drawn["settings tried before"] == [[5, 0.7]]
    top = draw_tuning(tuning).axes[0].get_ylim()[1]
    assert drawn["stopped early"] == [[3, top]] and drawn["failed"] == [[2, top]]
    words = describe_tuning(tuning)
    assert "from 0.5000 to 0.9000" in words
    assert "Trials without a value: 1 stopped early, 1 failed." in words


def test_a_trial_far_off_does_not_hide_the_others(tuning: TuningResult) -> None:
    values = [0.5 + 0.01 * number for number in range(10)]
    trials = [TrialResult(n, v, "complete", 1.0, 1, {}) for n, v in enumerate([*values, 90.0])]
    found = replace(tuning, trials=tuple(trials), best=0)
    panel = draw_tuning(found).axes[0]
    top = panel.get_ylim()[1]
    assert top < 0.7 and panel.get_yscale() == "linear"
    assert curves(found)["far above"] == [[10, top]]
    # A search that begins far off and then settles is shown whole.
    values = [0.4 + 5 / (number + 1) ** 2 for number in range(100)]
    trials = [TrialResult(n, v, "complete", 1.0, 1, {}) for n, v in enumerate(values)]
    found = replace(tuning, trials=tuple(trials), best=99)
    assert draw_tuning(found).axes[0].get_yscale() == "log"
    assert draw_tuning(found).axes[0].get_ylim()[1] > 5.4


@pytest.mark.parametrize("width", [7.0, 3.3])
def test_importances_are_bars_the_greatest_first_and_none_are_no_panel(
    tuning: TuningResult, width: float
) -> None:
    _, bars = draw_tuning(tuning, LIGHT, width).axes
    names = [label.get_text() for label in bars.get_yticklabels()]
    assert names == ["weight of obs", "exponent"]
    assert [text.get_text() for text in bars.texts] == ["60 %", "20 %"]
    assert len(draw_tuning(replace(tuning, importances={}), LIGHT, width).axes) == 1


def test_a_tuning_that_measured_nothing_says_so_and_has_no_picture(
    report: Report, tuning: TuningResult
) -> None:
    failed = tuple(replace(trial, value=math.nan, state="failed") for trial in tuning.trials)
    report = replace(report, tuning=replace(tuning, trials=failed))
    assert "none could be measured." in markdown(report)
    assert "tuning" not in [picture.name for picture in pictures_of(report)]


def test_settings_of_either_kind_are_read_back(full_report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(full_report.as_dict()))
    again = read_report(path)
    assert again.tuning == full_report.tuning
    assert again.recovery == full_report.recovery
    content: dict[str, Any] = full_report.as_dict()
    del content["tuning"], content["recovery"]  # an older report has neither
    path.write_text(json.dumps(content))
    assert read_report(path).tuning is None
