# SPDX-License-Identifier: Apache-2.0
"""Text becomes windows of token ids."""

from __future__ import annotations

import math

from prunec.compiler.calibration import sources
from prunec.compiler.calibration.windows import cut_windows, draw_windows
from prunec.compiler.plan import Step
from prunec.compiler.steps.context import Context, Progress, Summary
from prunec.compiler.store import Entry


def run_tokens(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    params, tokenizer = step.params, context.tokenizer
    whole = params.get("cut_from", params["length"])
    wanted = params["total"] * whole
    seen = 0

    def encode(text: str) -> list[int]:
        nonlocal seen
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        context.check_ids(ids)
        seen += len(ids)
        progress(min(seen, wanted), wanted, "tokens read")
        return ids

    ids = draw_windows(
        sources.documents(params["source"], params["seed"], context.base),
        encode,
        context.end_id,
        windows=math.ceil(params["windows"] / (whole // params["length"])),
        length=whole,
        seed=params["seed"],
        skip=params["skip"],
        total=params["total"],
    )
    ids = cut_windows(ids, params["windows"], params["length"])
    entry.save_tensors("ids", {"ids": ids})
    return {"tokens": ids.numel()}
