# SPDX-License-Identifier: Apache-2.0
"""The calibration text that a tuner has found best: windows of the pools that its trials read."""

from __future__ import annotations

from prunec.compiler.plan import Step
from prunec.compiler.steps.context import Context, Progress, Summary, chosen_by
from prunec.compiler.steps.pools import pools_of
from prunec.compiler.store import Entry
from prunec.compiler.tuning.settings import CalibrationChoice


def run_chosen(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    """As many tokens as calibration asks for, or as there are in what was chosen."""
    settings = chosen_by(context, step, "settings")["settings"]
    choice = CalibrationChoice.from_dict(settings["calibration"])
    tokens = step.params["windows"] * step.params["length"]
    pools = pools_of(context, step)
    ids, parts = pools.text(choice, tokens, step.params["seed"])
    entry.save_tensors("ids", {"ids": ids})
    return {"tokens": ids.numel(), "parts": parts}
