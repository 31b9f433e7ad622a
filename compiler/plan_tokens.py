# SPDX-License-Identifier: Apache-2.0
"""Which text a build draws, and for what: steps that share no token with each other."""

from __future__ import annotations

import math
import os
from pathlib import Path

from prunec.compiler.calibration import sources
from prunec.compiler.diagnostics import RecipeProblemError
from prunec.compiler.plan import Cost
from prunec.compiler.plan_builder import PlanBuilder
from prunec.compiler.recipe import Source, TextCheck, Validation

#: The step that draws the text of `validate.perplexity`; others have their name behind it.
EVALUATION = "evaluation-tokens"


def add_fitting_tokens(steps: PlanBuilder, base: Path) -> None:
    """Text that weights are fitted to, and text that layouts are compared on."""
    calibration, search = steps.recipe.calibration, steps.recipe.search
    if calibration is None:
        return
    length, seed = calibration.sequence_length, calibration.seed
    windows = math.ceil(calibration.tokens / length)
    search_windows = math.ceil(search.tokens / length) if search else 0
    shared = search is not None and search.source in (None, calibration.source)
    total = windows + search_windows if shared else windows
    _add(
        steps,
        base,
        "calibration-tokens",
        "calibration.source",
        "text that the weights are fitted to",
        calibration.source,
        {"windows": windows, "length": length, "seed": seed, "skip": 0, "total": total},
    )
    if search:
        assert search.seed is not None  # settled with the recipe
        own = {"seed": search.seed, "skip": 0, "total": search_windows}
        rest = {"seed": seed, "skip": windows, "total": total}
        _add(
            steps,
            base,
            "search-tokens",
            "search.source",
            "text that layouts are compared on; calibration does not see it",
            search.source or calibration.source,
            {"windows": search_windows, "length": length} | (rest if shared else own),
        )


def add_evaluation_tokens(steps: PlanBuilder, validation: Validation, base: Path) -> None:
    """Texts that judge: one step for each."""
    for step, (key, check) in evaluated(validation).items():
        windows = math.ceil(check.tokens / check.sequence_length)
        _add(
            steps,
            base,
            step,
            f"{key}.source",
            "text that nothing was fitted to or chosen on",
            check.source,
            {
                "windows": windows,
                "length": check.sequence_length,
                "seed": 0,
                "skip": 0,
                "total": windows,
            },
        )


def evaluated(validation: Validation) -> dict[str, tuple[str, TextCheck]]:
    """Of every step that draws a judging text: the recipe's key of its check, and the check."""
    found: dict[str, tuple[str, TextCheck]] = {}
    if validation.perplexity:
        found[EVALUATION] = ("validate.perplexity", validation.perplexity)
    for name, check in validation.elsewhere.items():
        found[f"{EVALUATION}-{name}"] = (f"validate.elsewhere.{name}", check)
    return found


def _add(
    steps: PlanBuilder,
    base: Path,
    name: str,
    key: str,
    why: str,
    source: Source,
    draw: dict[str, int],
) -> None:
    data = source.model_dump()
    if "files" in data:
        # Relative, so that a plan reads the same wherever the project lies.
        data["files"] = [os.path.relpath(path, base) for path in data["files"]]
    try:
        text = sources.identity(data, base)
    except sources.SourceError as error:
        raise RecipeProblemError(key, error.message, error.hint) from None
    params = {"source": data, "text": text, "tokenizer": steps.identity, **draw}
    steps.add(
        name, "tokens", why, params, {}, Cost(disk_bytes=8 * draw["windows"] * draw["length"])
    )
