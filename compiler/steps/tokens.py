# SPDX-License-Identifier: Apache-2.0
"""Text becomes windows of token ids."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from prunec.compiler.calibration import sources
from prunec.compiler.calibration.prefix import begun, prefix_of
from prunec.compiler.calibration.windows import cut_windows, draw_windows
from prunec.compiler.diagnostics import BuildError
from prunec.compiler.plan import Step
from prunec.compiler.steps.context import Context, Progress, Summary
from prunec.compiler.store import Entry


def run_tokens(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    params, tokenizer = step.params, context.tokenizer
    prefix = prefix_of(tokenizer, params["bos"])
    context.check_ids(prefix)
    whole, pieces = windows_cut(params)
    room, length = whole - len(prefix), params["length"] - len(prefix)
    if length < 1:
        raise BuildError(
            f"a text begins with {len(prefix)} tokens, which leave no room in windows of "
            f"{params['length']}",
            hint="raise the sequence length",
        )
    wanted = params["total"] * room
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
        windows=math.ceil(params["windows"] / pieces),
        length=room,
        seed=params["seed"],
        skip=params["skip"],
        total=params["total"],
    )
    ids = begun(cut_windows(ids, params["windows"], length, pieces), prefix)
    entry.save_tensors("ids", {"ids": ids})
    return {"tokens": ids.numel(), "prefix": prefix}


def windows_cut(params: Mapping[str, Any]) -> tuple[int, int]:
    """The length of the windows that a step's own are cut from, and how many come of each.

    Both lengths count what every window begins with; so many pieces fit whatever that is.
    """
    whole = params.get("cut_from", params["length"])
    return whole, whole // params["length"]
