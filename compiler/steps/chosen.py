# SPDX-License-Identifier: Apache-2.0
"""The calibration text that a tuner has found best: windows of the pools that its trials read."""

from __future__ import annotations

import math

import torch

from prunec.compiler.calibration.shares import shares_of
from prunec.compiler.plan import Step
from prunec.compiler.steps.context import Context, Progress, Summary, chosen_by
from prunec.compiler.store import Entry


def run_chosen(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    """As many tokens as calibration asks for, or as there are in what was chosen, every part with
    the share that was chosen; in random order."""
    params, choice = step.params, chosen_by(context, step, "settings")["settings"]["calibration"]
    pools = {pool["part"]: pool for pool in params["pools"] if pool["length"] == choice["length"]}
    generator = torch.Generator().manual_seed(params["seed"])
    found = {}
    for part in choice["weights"]:
        groups = context.found(step, pools[part]["statistics"])["groups"]
        windows = [
            window
            for group in groups
            if choice["quantile"] in (None, group["quantile"])
            and group["number"] in choice["groups"]
            for window in group["windows"]
        ]
        order = torch.randperm(len(windows), generator=generator)
        chosen = torch.tensor(sorted(windows))[order]
        found[part] = context.ids(step, pools[part]["tokens"])[chosen]
    total = math.ceil(params["windows"] * params["length"] / choice["length"])
    # Where there are fewer windows than parts, those of the largest shares.
    largest = sorted(choice["weights"].items(), key=lambda item: -item[1])[:total]
    wanted = shares_of(dict(largest), total)
    # Where a part has too few windows, all give way, so that the shares stay.
    scale = min(1.0, *(len(found[part]) / count for part, count in wanted.items()))
    counts = {part: max(1, math.floor(count * scale)) for part, count in wanted.items()}
    ids = torch.cat([found[part][:count] for part, count in counts.items()])
    ids = ids[torch.randperm(len(ids), generator=generator)]
    entry.save_tensors("ids", {"ids": ids})
    return {"tokens": ids.numel(), "parts": counts}
