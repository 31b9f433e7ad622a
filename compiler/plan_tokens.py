# SPDX-License-Identifier: Apache-2.0
"""Which text each purpose gets, none of which sees another's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunec.compiler.plan_builder import PlanBuilder
from prunec.compiler.plan_texts import Draw, Text, add_texts
from prunec.compiler.recipe import (
    AdaPrunerMethod,
    Calibration,
    MixedSource,
    TextCheck,
    Validation,
)

#: The step that draws the text of `validate.perplexity`; others have their name behind it.
EVALUATION = "evaluation-tokens"


@dataclass(frozen=True)
class Pool:
    """Where a tuner finds the windows of one part of the calibration text at one length.

    part: the part's name, empty where the source is no mixture; weight: the part's in the recipe
    """

    part: str
    weight: float
    length: int
    step: str


def add_fitting_tokens(steps: PlanBuilder, base: Path) -> None:
    """Text that weights are fitted to, and text that layouts are compared on.

    Method `adapruner` gets pools (see `pools`) instead of `calibration-tokens`, which it chooses
    from them.
    """
    calibration, search = steps.recipe.calibration, steps.recipe.search
    if calibration is None:
        return
    length = calibration.sequence_length
    if isinstance(steps.recipe.method, AdaPrunerMethod):
        texts = _pooled(calibration, pools(steps))
    else:
        draw = Draw("calibration-tokens", math.ceil(calibration.tokens / length), length)
        why = "text that the weights are fitted to"
        key, source, seed = "calibration.source", calibration.source, calibration.seed
        texts = [Text(key, why, source, seed, calibration.bos, (draw,))]
    if search:
        assert search.seed is not None and search.bos is not None  # settled with the recipe
        draw = Draw("search-tokens", math.ceil(search.tokens / length), length)
        why = "text that layouts are compared on; calibration does not see it"
        source = search.source or calibration.source
        texts.append(Text("search.source", why, source, search.seed, search.bos, (draw,)))
    add_texts(steps, base, texts)


def pools(steps: PlanBuilder) -> list[Pool]:
    """What a tuner chooses calibration text from: of every part that may have a weight, about
    `calibration.tokens` tokens at every length."""
    calibration, method = steps.recipe.calibration, steps.recipe.method
    assert calibration is not None and isinstance(method, AdaPrunerMethod)
    weights = {"": 1.0}
    if isinstance(calibration.source, MixedSource):
        parts = calibration.source.parts.items()
        tuned = method.calibration.mixture
        weights = {name: part.weight for name, part in parts if part.weight or tuned}
    lengths = sorted(set(method.calibration.lengths) or {calibration.sequence_length})
    return [
        Pool(
            part,
            weight,
            length,
            "-".join(["pool", *([str(length)] if lengths[1:] else []), *([part] if part else [])]),
        )
        for part, weight in weights.items()
        for length in lengths
    ]


def _pooled(calibration: Calibration, found: Sequence[Pool]) -> list[Text]:
    texts = []
    for part in dict.fromkeys(pool.part for pool in found):
        key, source = "calibration.source", calibration.source
        if isinstance(source, MixedSource):
            key, source = f"{key}.parts.{part}.source", source.parts[part].source
        draws = tuple(
            Draw(pool.step, math.ceil(calibration.tokens / pool.length), pool.length)
            for pool in found
            if pool.part == part
        )
        seed, bos = calibration.seed, calibration.bos
        texts.append(Text(key, "text to choose from", source, seed, bos, draws))
    return texts


def add_evaluation_tokens(steps: PlanBuilder, validation: Validation, base: Path) -> None:
    """Texts that judge: one step for each."""
    for step, (key, check) in evaluated(validation).items():
        draw = Draw(step, math.ceil(check.tokens / check.sequence_length), check.sequence_length)
        why = "text that nothing was fitted to or chosen on"
        add_texts(steps, base, [Text(f"{key}.source", why, check.source, 0, check.bos, (draw,))])


def evaluated(validation: Validation) -> dict[str, tuple[str, TextCheck]]:
    """Of every step that draws a judging text: the recipe's key of its check, and the check."""
    found: dict[str, tuple[str, TextCheck]] = {}
    if validation.perplexity:
        found[EVALUATION] = ("validate.perplexity", validation.perplexity)
    for name, check in validation.elsewhere.items():
        found[f"{EVALUATION}-{name}"] = (f"validate.elsewhere.{name}", check)
    return found
