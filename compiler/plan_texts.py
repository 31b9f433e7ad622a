# SPDX-License-Identifier: Apache-2.0
"""Texts become steps: drawn from files, written by the model or mixed, and kept apart."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunec.compiler.calibration import sources
from prunec.compiler.calibration.shares import shares_of
from prunec.compiler.diagnostics import RecipeProblemError
from prunec.compiler.estimates import Windows, light
from prunec.compiler.estimates_artefact import generation
from prunec.compiler.model.bos import lacks_bos
from prunec.compiler.model.errors import ModelError
from prunec.compiler.plan_builder import PlanBuilder
from prunec.compiler.recipe import FittingSource, MixedSource, SelfSource

#: Tokens that a model writes side by side, whose keys and values are held; and windows, at most.
_SIDE_BY_SIDE, _WINDOWS = 65_536, 128


@dataclass(frozen=True)
class Draw:
    """A step's windows: [windows, length] token ids."""

    name: str
    windows: int
    length: int


@dataclass(frozen=True)
class Text:
    """One purpose's part of a source. `key`: where the source stands in the recipe.

    Several draws cut the same tokens into windows of different lengths.
    """

    key: str
    why: str
    source: FittingSource
    seed: int
    bos: str
    draws: tuple[Draw, ...]


def add_texts(steps: PlanBuilder, base: Path, texts: Sequence[Text]) -> None:
    """Steps that draw these texts, which share no window with each other: where several take the
    same source, they take different windows of one draw, by the first one's seed.

    A mixture becomes a step for each part, `<name>-<part>`, and one that joins them.
    """
    for text in texts:
        _check_windows(steps, text)
    parts = {number: _parts_of(text) for number, text in enumerate(texts)}
    placed = _placed([part for found in parts.values() for part in found])
    for number, text in enumerate(texts):
        for part in parts[number]:
            for draw in part.draws:
                _add(steps, base, part, draw, placed[draw.name])
        if isinstance(text.source, MixedSource):
            for draw in text.draws:
                _add_mixture(steps, base, text, text.source, draw)


def _check_windows(steps: PlanBuilder, text: Text) -> None:
    """What can be known of windows without any text: how they begin, and how long they may be."""
    section = text.key.partition(".source")[0]
    if text.bos == "always" and steps.folder:
        try:
            lacking = lacks_bos(steps.folder)
        except ModelError as error:
            raise RecipeProblemError("model.source", error.message, error.hint) from None
        if lacking:
            raise RecipeProblemError(
                f"{section}.bos",
                f"{section}.bos is always, and the tokenizer in {steps.folder} has no BOS token",
                hint="leave it out: windows then begin as that tokenizer begins a text",
            )
    limit = steps.facts.config.get("max_position_embeddings")
    longest = max(draw.length for draw in text.draws)
    if isinstance(limit, int) and longest > limit:
        steps.warn(
            f"{section} reads windows of {longest:,} tokens, and the model knows {limit:,} "
            "positions: what lies beyond is nothing that it was trained for"
        )


def _parts_of(text: Text) -> list[Text]:
    """A text of a single source for every part of a mixture; the text itself if it is none."""
    if not isinstance(text.source, MixedSource):
        return [text]
    shares = [_shares(text, draw) for draw in text.draws]
    return [
        Text(
            f"{text.key}.parts.{name}.source",
            text.why,
            part.source,
            text.seed,
            text.bos,
            tuple(
                Draw(_part_step(draw, name), share[name], draw.length)
                for draw, share in zip(text.draws, shares, strict=True)
            ),
        )
        for name, part in text.source.parts.items()
        if part.weight
    ]


def _shares(text: Text, draw: Draw) -> dict[str, int]:
    """Windows of every part that has a weight."""
    assert isinstance(text.source, MixedSource)
    weights = {name: part.weight for name, part in text.source.parts.items() if part.weight}
    if draw.windows < len(weights):
        raise RecipeProblemError(
            text.key,
            f"{text.key} mixes {len(weights)} texts, and {draw.name} has {draw.windows} "
            f"{'window' if draw.windows == 1 else 'windows'} of {draw.length} tokens",
            hint="ask for more tokens, or mix fewer texts",
        )
    return shares_of(weights, draw.windows)


def _part_step(draw: Draw, part: str) -> str:
    return f"{draw.name}-{part}"


def _placed(texts: Sequence[Text]) -> dict[str, dict[str, int]]:
    """Of every draw: which windows it takes of all that its source gives.

    Sources are cut into windows of the longest length that is taken from them; `cut_from` names
    it where a draw's own windows are shorter pieces of those.
    """
    placed: dict[str, dict[str, int]] = {}
    for source in {_key(text.source): text.source for text in texts}.values():
        sharing = [text for text in texts if text.source == source]
        unit = max(draw.length for text in sharing for draw in text.draws)
        before, own = 0, []
        for text in sharing:
            own.append(before)
            before += max(math.ceil(d.windows / (unit // d.length)) for d in text.draws)
        for text, skip in zip(sharing, own, strict=True):
            place = {"seed": sharing[0].seed, "skip": skip, "total": before}
            for draw in text.draws:
                cut = {"cut_from": unit} if draw.length < unit else {}
                placed[draw.name] = place | cut
    return placed


def _key(source: FittingSource) -> str:
    return source.model_dump_json()


def _add(steps: PlanBuilder, base: Path, text: Text, draw: Draw, place: dict[str, int]) -> None:
    data, source = plain_source(text.source, base), text.source
    shape = {"windows": draw.windows, "length": draw.length, "bos": text.bos}
    disk_bytes = 8 * draw.windows * draw.length
    if isinstance(source, SelfSource):
        length = place.get("cut_from", draw.length)
        _check_context(steps, text, length)
        size = max(1, min(_WINDOWS, _SIDE_BY_SIDE // length))
        written = {"source": data} | steps.model | shape | place | {"side_by_side": size}
        del written["total"]  # a window is written by its own number, whatever else is
        why = f"{text.why}, written by the dense model"
        taken = generation(
            steps.sizes,
            Windows(draw.windows, draw.length),
            together=size,
            disk_bytes=2 * disk_bytes,
        )
        steps.add(draw.name, "generate", why, written, {}, taken)
        return
    try:
        identity = sources.identity(data, base)
    except sources.SourceError as error:
        raise RecipeProblemError(text.key, error.message, error.hint) from None
    params = {"source": data, "text": identity, "tokenizer": steps.identity} | shape | place
    steps.add(draw.name, "tokens", text.why, params, {}, light(disk_bytes))


def _add_mixture(
    steps: PlanBuilder, base: Path, text: Text, source: MixedSource, draw: Draw
) -> None:
    plain = plain_source(source, base)
    steps.add(
        draw.name,
        "mixture",
        f"{text.why}: the parts joined and shuffled",
        {
            "source": plain,
            "windows": draw.windows,
            "length": draw.length,
            "seed": text.seed,
        },
        {name: _part_step(draw, name) for name in plain["parts"]},
        light(8 * draw.windows * draw.length),
    )


def _check_context(steps: PlanBuilder, text: Text, length: int) -> None:
    limit = steps.facts.config.get("max_position_embeddings")
    if isinstance(limit, int) and length > limit:
        raise RecipeProblemError(
            text.key,
            f"{text.key} is self, in windows of {length:,} tokens; the model writes at most "
            f"{limit:,}",
            hint="lower the sequence length",
        )


def plain_source(source: FittingSource, base: Path) -> dict[str, Any]:
    """A source as parameters of a step; of a mixture the parts that have a weight."""
    if isinstance(source, MixedSource):
        parts = {
            name: {"source": plain_source(part.source, base), "weight": part.weight}
            for name, part in source.parts.items()
            if part.weight
        }
        return {"kind": "mix", "parts": parts}
    data = source.model_dump()
    if "files" in data:
        # Relative, so that a plan reads the same wherever the project lies.
        data["files"] = [os.path.relpath(path, base) for path in data["files"]]
    return data
