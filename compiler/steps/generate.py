# SPDX-License-Identifier: Apache-2.0
"""Text that the dense model writes itself, with the whole model in memory."""

from __future__ import annotations

import importlib
import importlib.util
import math
from functools import partial
from typing import Any

import torch

from prunec.compiler.calibration.prefix import begun, prefix_of
from prunec.compiler.calibration.self_written import luck_of, write_windows
from prunec.compiler.calibration.windows import cut_windows
from prunec.compiler.diagnostics import BuildError
from prunec.compiler.plan import Step
from prunec.compiler.steps.context import Context, Progress, Summary
from prunec.compiler.steps.tokens import windows_cut
from prunec.compiler.store import Entry
from prunec.validators.loading import open_model


def run_generate(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    """Windows are written in batches, each of which is kept, and numbered through the draw."""
    params = step.params
    temperature = params["source"]["temperature"]
    start, ends = _start(context, params["bos"]), set(context.special_ids.ends)
    prefix = [] if params["bos"] == "never" else [start]
    whole, pieces = windows_cut(params)
    length = whole + 1 - len(prefix)  # with what texts begin with, which windows may not
    windows = math.ceil(params["windows"] / pieces)
    size = params["side_by_side"]
    model: Any = None
    written = []
    for first in range(0, windows, size):
        count = min(size, windows - first)
        kept = entry.load_tensors(f"windows-{first}")
        if kept is None:
            model = model or _dense_model(context)
            numbers = range(params["skip"] + first, params["skip"] + first + count)
            luck = torch.stack([luck_of(n, length, params["seed"], temperature) for n in numbers])
            told = partial(_tell, progress, first * length, count, windows * length)
            ids = write_windows(model, start, ends, luck, temperature, told)
            entry.save_tensors(f"windows-{first}", {"ids": ids})
        else:
            ids = kept[0]["ids"]
        written.append(ids)
        progress((first + count) * length, windows * length, "tokens written")
    content = torch.cat(written)[:, 1:]
    cut = cut_windows(content, params["windows"], params["length"] - len(prefix), pieces)
    ids = begun(cut, prefix)
    entry.save_tensors("ids", {"ids": ids})
    return {"tokens": ids.numel(), "token_forwards": windows * (length - 1)}


def _tell(progress: Progress, before: int, side_by_side: int, of: int, at: int) -> None:
    progress(before + at * side_by_side, of, "tokens written")


def _start(context: Context, bos: str) -> int:
    """The token that texts begin with. What no tokenizer begins with anything has to begin with
    something still: a BOS token that is only named, or what ends a text."""
    own = prefix_of(context.tokenizer, "always" if bos == "always" else "auto")
    if len(own) > 1:
        raise BuildError(
            f"the tokenizer begins a text with {len(own)} tokens, and a model's own text can be "
            "begun with one only",
            hint="take another source than self",
        )
    named = context.special_ids.bos
    start = own[0] if own else context.end_id if named is None else named
    context.check_ids([start])
    return start


def _dense_model(context: Context) -> Any:
    """The dense model as transformers loads it, at the recipe's dtype, on the GPUs if there are."""
    dtype = getattr(torch, context.recipe.model.dtype)
    if torch.cuda.device_count() < 2 or not importlib.util.find_spec("accelerate"):
        return open_model(context.folder, dtype, device=context.decoder.device).model
    accelerate: Any = importlib.import_module("accelerate")
    model = open_model(context.folder, dtype).model
    whole = model._no_split_modules
    memory = accelerate.utils.get_balanced_memory(model, None, whole, dtype)
    places = accelerate.infer_auto_device_map(model, memory, whole, dtype)
    return accelerate.dispatch_model(model, places)
