# SPDX-License-Identifier: Apache-2.0
"""Windows of several texts become one text, in an order that a seed decides."""

from __future__ import annotations

import torch

from prunec.compiler.plan import Step
from prunec.compiler.steps.context import Context, Progress, Summary
from prunec.compiler.store import Entry


def run_mixture(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    """ids: [windows, length], those of all the step's inputs."""
    ids = torch.cat([context.ids(step, part) for part in sorted(step.inputs)])
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(step.params["seed"]))
    entry.save_tensors("ids", {"ids": ids[order]})
    return {"tokens": ids.numel()}
