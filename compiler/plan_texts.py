# SPDX-License-Identifier: Apache-2.0
"""Texts become steps: drawn from files, written by the model or mixed, and kept apart."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prunec.compiler.calibration import sources
from prunec.compiler.calibration.shares import shares_of
from prunec.compiler.diagnostics import RecipeProblemError
from prunec.compiler.estimates import Windows, light
from prunec.compiler.estimates_artefact import generation
from prunec.compiler.model.bos import lacks_bos
from prunec.compiler.model.chat_template import chat_template_problem
from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.special_ids import lacks_end, no_end_of_text
from prunec.compiler.plan_builder import PlanBuilder
from prunec.compiler.recipe import ChatSource, FittingSource, MixedSource, SelfSource

#: Files whose bytes are text; tokens that a byte of it becomes at most, where a tokenizer composes
#: characters anew (NFC makes three of one); tokens at most that a window begins with.
_UNPACKED, _MOST_TOKENS, _BEGINNINGS = (".txt", ".md", ".jsonl", ".json", ".raw"), 3, 8

#: Tokens that a model writes side by side, whose keys and values are held; and windows, at most.
_SIDE_BY_SIDE, _WINDOWS = 65_536, 128


@dataclass(frozen=True)
class Draw:
    """A step's windows: [windows, length] token ids.

    whole: all that the text has, in its order; `windows` is about how many these are
    """

    name: str
    windows: int
    length: int
    whole: bool = False


@dataclass(frozen=True)
class Text:
    """One purpose's part of a source. `key`: where the source stands in the recipe.

    draws: several cut the same tokens into windows of different lengths
    reader: texts of one reader may hold the same documents, those of others of the same source
        never do
    judges: whether it reads what the source holds out, or the rest
    """

    key: str
    why: str
    source: FittingSource
    seed: int
    bos: str
    draws: tuple[Draw, ...]
    reader: str
    judges: bool = False

    @property
    def unit(self) -> int:
        """Tokens of the windows that those of all draws are cut from."""
        return max(draw.length for draw in self.draws)

    @property
    def windows(self) -> int:
        """Windows of that length that the draws take."""
        return max(math.ceil(draw.windows / (self.unit // draw.length)) for draw in self.draws)

    @property
    def tokens(self) -> int:
        return self.windows * self.unit


def add_texts(steps: PlanBuilder, base: Path, texts: Sequence[Text]) -> None:
    """Steps that draw these texts. Where several readers take the same source, its documents are
    dealt among them, in the order that the first one's seed decides.

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
    if steps.folder:
        try:
            no_end = lacks_end(steps.facts.config, steps.folder)
            no_bos = text.bos == "always" and lacks_bos(steps.folder)
        except ModelError as error:
            raise RecipeProblemError("model.source", error.message, error.hint) from None
        if no_end:
            raise RecipeProblemError("model.source", *no_end_of_text(steps.folder))
        if no_bos:
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
        replace(
            text,
            key=f"{text.key}.parts.{name}.source",
            source=part.source,
            draws=tuple(
                Draw(_part_step(draw, name), share[name], draw.length)
                for draw, share in zip(text.draws, shares, strict=True)
            ),
            reader=f"{text.reader}.{name}",
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


def _placed(texts: Sequence[Text]) -> dict[str, dict[str, Any]]:
    """Of every draw: which documents of its source, or which of the windows that the model writes,
    it takes, and how many windows its text has in all.

    `cut_from` names the text's longest windows where a draw's own are shorter pieces of those.
    """
    placed: dict[str, dict[str, Any]] = {}
    for source in {_key(text.source): text.source for text in texts}.values():
        sharing = [text for text in texts if text.source == source]
        readers: dict[str, list[Text]] = {}
        for text in sharing:
            readers.setdefault(text.reader, []).append(text)
        # By the first text of each reader: how much a recovery reads moves nothing that was
        # calibrated on, so that a build with another recovery goes on from that.
        shares, before = [each[0].tokens for each in readers.values()], 0
        for own, reading in enumerate(readers.values()):
            deal = {"deal": {"shares": shares, "own": own}} if len(shares) > 1 else {}
            for text in reading:
                place: dict[str, Any] = {"seed": text.seed}
                if isinstance(source, SelfSource):
                    place |= {"skip": before}
                else:
                    place |= {"order": sharing[0].seed, "total": text.windows} | deal
                for draw in text.draws:
                    cut = {"cut_from": text.unit} if draw.length < text.unit else {}
                    placed[draw.name] = place | cut
            before += max(text.windows for text in reading)
    return placed


def _key(source: FittingSource) -> str:
    return source.model_dump_json()


def _add(steps: PlanBuilder, base: Path, text: Text, draw: Draw, place: dict[str, Any]) -> None:
    data, source = plain_source(text.source, base), text.source
    shape = {"windows": draw.windows, "length": draw.length, "bos": text.bos}
    disk_bytes = 8 * draw.windows * draw.length
    if isinstance(source, SelfSource):
        length = place.get("cut_from", draw.length)
        _check_context(steps, text, length)
        size = max(1, min(_WINDOWS, _SIDE_BY_SIDE // length))
        written = {"source": data} | steps.model | shape | place | {"side_by_side": size}
        why = f"{text.why}, written by the dense model"
        taken = generation(
            steps.sizes,
            Windows(draw.windows, draw.length),
            together=size,
            disk_bytes=2 * disk_bytes,
        )
        steps.add(draw.name, "generate", why, written, {}, taken)
        return
    _check_template(steps, source, text)
    try:
        sources.check(data, base)
        _check_length(data, base, draw, text)
        identity = sources.identity(data, base)
    except sources.SourceError as error:
        raise RecipeProblemError(text.key, error.message, error.hint) from None
    params = {"source": data, "text": identity, "tokenizer": steps.identity} | shape | place
    params["judges"] = text.judges
    if draw.whole:
        params["order"] = None
    steps.add(draw.name, "tokens", text.why, params, {}, light(disk_bytes))


def _check_template(steps: PlanBuilder, source: FittingSource, text: Text) -> None:
    if not isinstance(source, ChatSource) or not steps.folder:
        return
    if problem := chat_template_problem(steps.folder, steps.facts.vocab_size):
        raise RecipeProblemError(
            text.key,
            f"{text.key} is chat, and the tokenizer in {steps.folder} {problem[0]}",
            hint=problem[1],
        )


def _check_length(source: dict[str, Any], base: Path, draw: Draw, text: Text) -> None:
    """Refuses files that cannot hold what is asked for, whatever the tokenizer: of a byte of text
    none makes more than a few tokens. What is packed has more bytes than its files, and a chat
    template adds some."""
    names = source.get("files") or ()
    if draw.whole or not names or source["kind"] == "chat":
        return
    if any(not name.endswith(_UNPACKED) for name in names):
        return
    held, asked = sources.file_bytes(source, base), draw.windows * draw.length
    if held * _MOST_TOKENS < asked - _BEGINNINGS * draw.windows:
        raise RecipeProblemError(
            text.key,
            f"{text.key} has {held:,} bytes of text, too few for the {asked:,} tokens of "
            f"{draw.name}",
            hint="ask for fewer tokens, or give more text",
        )


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
    for name in ("holdout", "join"):
        if data.get(name, "") is None:
            del data[name]
    if data.get("files"):
        # Relative, so that a plan reads the same wherever the project lies.
        data["files"] = [os.path.relpath(path, base) for path in data["files"]]
    return data
