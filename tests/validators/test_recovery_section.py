# SPDX-License-Identifier: Apache-2.0
"""What a report, a terminal and a comparison say and show of a recovery."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from prunec.validators.card import measured_section
from prunec.validators.comparison_rows import Side, rows_of
from prunec.validators.markdown import markdown
from prunec.validators.picture_of_recovery import describe_recovery, draw_recovery
from prunec.validators.pictures import pictures_of
from prunec.validators.report import render_table
from prunec.validators.results import RecoveryPoint, RecoveryResult, Report

LOSS = "held-out loss (divergence from the dense model, nats per token)"


@pytest.fixture
def useless(recovery: RecoveryResult) -> RecoveryResult:
    """Training that made things worse, and was not kept."""
    points = (RecoveryPoint(0, 0.6, None), RecoveryPoint(8_192, 0.8, 0.3))
    return replace(recovery, kept=False, after=0.8, points=points)


def shown(report: Report) -> str:
    console = Console(file=io.StringIO(), width=80, color_system=None)
    render_table(report, console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_what_was_gained_is_said_first_then_what_it_took(full_report: Report) -> None:
    text = markdown(full_report).partition("## Recovery")[2].partition("\n## ")[0]
    assert text.strip().splitlines()[::2][-4:] == [
        f"The {LOSS} fell from 0.6000 to 0.4000.",
        "Trained on 24,576 tokens: low-rank adapters (LoRA), 73,728 parameters.",
        "Training ended before its budget: 1 look without a gain.",
        "Merging the adapters into the weights changed no logit by more than 2.4e-06.",
    ]
    assert "fell from 0.6000 to 0.4000." in " ".join(shown(full_report).split())
    assert "### Recovery" in measured_section(full_report)


def test_recovery_of_no_use_is_a_warning_wherever_it_is_told(
    full_report: Report, useless: RecoveryResult
) -> None:
    report = replace(full_report, recovery=useless)
    warning = (
        f"Recovery was of no use: it raised the {LOSS} from 0.6000 to 0.8000. "
        "The weights are those from before it."
    )
    for told in (markdown(report), measured_section(report)):
        assert warning in told.splitlines()
    assert f"warning {warning}" in " ".join(shown(report).split())
    assert max(map(len, shown(report).splitlines())) <= 80
    same = replace(report, recovery=replace(useless, after=0.6))
    assert f"of no use: training brought the {LOSS} of 0.6000 no lower." in markdown(same)
    broken = replace(report, recovery=replace(useless, after=math.nan))
    assert f"of no use: the {LOSS} was 0.6000 before and not finite after it." in markdown(broken)


def test_the_curves_are_both_losses_and_a_line_for_what_was_before(
    recovery: RecoveryResult,
) -> None:
    [panel] = draw_recovery(recovery).axes
    drawn = {str(line.get_label()): np.asarray(line.get_xydata()).tolist() for line in panel.lines}
    assert drawn["held-out text"] == [[p.tokens, p.held_out] for p in recovery.points]
    assert drawn["training text"] == [[p.tokens, p.training] for p in recovery.points[1:]]
    assert [y for _, y in drawn["before: 0.6000"]] == [0.6, 0.6]
    assert [text.get_text() for text in panel.texts] == ["0.4000"]
    assert "0.4000 at its lowest, after 16,384 tokens" in describe_recovery(recovery)


def test_the_lowest_point_is_named_only_if_it_is_a_gain(useless: RecoveryResult) -> None:
    [panel] = draw_recovery(useless).axes
    assert not panel.texts
    assert describe_recovery(useless).endswith("It was not kept.")


def test_points_that_are_not_finite_are_left_out_and_none_are_no_picture(
    report: Report, recovery: RecoveryResult
) -> None:
    points = (RecoveryPoint(0, 0.6, None), RecoveryPoint(8_192, math.inf, math.nan))
    diverged = replace(recovery, points=points)
    assert "0.6000 at the end, after 0." in describe_recovery(diverged)
    names = [p.name for p in pictures_of(replace(report, recovery=diverged))]
    assert "recovery" in names
    nothing = replace(recovery, points=points[1:])
    assert "recovery" not in [p.name for p in pictures_of(replace(report, recovery=nothing))]


def test_builds_are_compared_by_what_recovery_and_tuning_gained(
    full_report: Report, report: Report, useless: RecoveryResult
) -> None:
    reports = {
        "kept": full_report,
        "not": replace(full_report, recovery=useless),
        "plain": report,
    }
    sides = [Side(Path(name), name, "build", each, None) for name, each in reports.items()]
    rows = {row.key: row.cells for row in rows_of(sides)}
    kept, undone, none = rows["recovery.ratio"]
    assert (kept.text, undone.text, none.value) == (
        "0.667\n0.6000 → 0.4000",
        "1.000\nnot kept",
        None,
    )
    assert rows["tuning.divergence"][0].text == "0.5000\ntpe, 6 trials"
