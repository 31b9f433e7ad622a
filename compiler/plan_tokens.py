# SPDX-License-Identifier: Apache-2.0
"""Which text each purpose gets, none of which sees another's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunec.compiler.calibration.sources import SourceError, file_bytes
from prunec.compiler.diagnostics import RecipeProblemError
from prunec.compiler.plan_builder import PlanBuilder
from prunec.compiler.plan_texts import Draw, Text, add_texts, plain_source
from prunec.compiler.recipe import (
    AdaPrunerMethod,
    Calibration,
    DocumentsSource,
    FittingSource,
    MixedSource,
    Recover,
    Search,
    TextCheck,
    Validation,
)

#: The step that draws the text of `validate.perplexity`; others have their name behind it.
EVALUATION = "evaluation-tokens"

#: The steps that draw the texts of a recovery.
TRAINED_ON, HELD_OUT = "recovery-tokens", "held-out-tokens"

#: Who reads the documents that weights are fitted to.
_FITTED = "fitted"

#: Bytes of a token of most languages' text; tokens of a source whose size is not known.
_TOKEN_BYTES, _UNKNOWN_TOKENS = 3, 2**19


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
    """Text that weights are fitted to, text that layouts are compared on, and the two of a
    recovery: what it trains on may be what was calibrated on, what stops it is like nothing that
    the model was fitted to or chosen on.

    Method `adapruner` gets pools (see `pools`) instead of `calibration-tokens`, which it chooses
    from them.
    """
    recipe, texts = steps.recipe, list[Text]()
    if recipe.calibration:
        texts += _calibration(steps, recipe.calibration)
        if recipe.search:
            texts.append(_search(recipe.calibration, recipe.search))
    if recipe.recover:
        texts += _recovery(recipe.recover)
    add_texts(steps, base, texts)


def _calibration(steps: PlanBuilder, calibration: Calibration) -> list[Text]:
    if isinstance(steps.recipe.method, AdaPrunerMethod):
        return _pooled(calibration, pools(steps))
    length = calibration.sequence_length
    draw = Draw("calibration-tokens", math.ceil(calibration.tokens / length), length)
    why = "text that the weights are fitted to"
    key, source, seed = "calibration.source", calibration.source, calibration.seed
    return [Text(key, why, source, seed, calibration.bos, (draw,), _FITTED)]


def _search(calibration: Calibration, search: Search) -> Text:
    assert search.source and search.seed is not None and search.bos  # settled with the recipe
    length = calibration.sequence_length
    draw = Draw("search-tokens", math.ceil(search.tokens / length), length)
    why = "text that layouts are compared on; calibration does not see it"
    return Text("search.source", why, search.source, search.seed, search.bos, (draw,), "search")


def _recovery(recover: Recover) -> list[Text]:
    length, seed, bos = recover.sequence_length, recover.seed, recover.bos
    assert recover.source and recover.held_out and length and bos  # settled with the recipe
    draws = [
        (Draw(step, math.ceil(tokens / length), length),)
        for step, tokens in ((TRAINED_ON, recover.tokens), (HELD_OUT, recover.held_out_tokens))
    ]
    why = "text that the pruned model is trained on"
    judging = "text that says when to stop training and whether it was of use"
    return [
        Text("recover.source", why, recover.source, seed, bos, draws[0], _FITTED),
        Text("recover.held_out", judging, recover.held_out, seed, bos, draws[1], HELD_OUT),
    ]


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
        reader = f"{_FITTED}.{part}" if part else _FITTED
        texts.append(Text(key, "text to choose from", source, seed, bos, draws, reader))
    return texts


def add_evaluation_tokens(steps: PlanBuilder, validation: Validation, base: Path) -> None:
    """Texts that judge: one step for each."""
    for step, (key, check) in evaluated(validation).items():
        assert check.source is not None  # settled with the recipe
        length, whole = check.sequence_length, check.tokens == "all"
        tokens = _about(check.source, base) if check.tokens == "all" else check.tokens
        draw = Draw(step, math.ceil(tokens / length), length, whole)
        why = "text that nothing was fitted to or chosen on"
        text = Text(f"{key}.source", why, check.source, 0, check.bos, (draw,), step, judges=True)
        add_texts(steps, base, [text])


def _about(source: FittingSource, base: Path) -> int:
    """About how many tokens a source has that is read as a whole, to estimate by."""
    held = source.holdout if isinstance(source, DocumentsSource) and source.holdout else 1.0
    try:
        found = file_bytes(plain_source(source, base), base)
    except SourceError as error:
        raise RecipeProblemError("validate", error.message, error.hint) from None
    return max(1, round(held * found / _TOKEN_BYTES)) if found else _UNKNOWN_TOKENS


def evaluated(validation: Validation) -> dict[str, tuple[str, TextCheck]]:
    """Of every step that draws a judging text: the recipe's key of its check, and the check."""
    found: dict[str, tuple[str, TextCheck]] = {}
    if validation.perplexity:
        found[EVALUATION] = ("validate.perplexity", validation.perplexity)
    for name, check in validation.elsewhere.items():
        found[f"{EVALUATION}-{name}"] = (f"validate.elsewhere.{name}", check)
    return found
