# SPDX-License-Identifier: Apache-2.0
"""Which token ids begin a text, end one or pad it, and which ids a model has no embedding for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.facts import Facts
from prunec.compiler.model.headers import read_json
from prunec.compiler.model.tokenizer_files import read_tokenizer

GENERATION = "generation_config.json"


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """bos: what texts begin with; ends: what may end one, the end of a document first; pad: what
    fills up a batch. None and empty where no file says it."""

    bos: int | None
    ends: tuple[int, ...]
    pad: int | None

    @property
    def end(self) -> int | None:
        """The id that is put between documents."""
        return self.ends[0] if self.ends else None


def settle_special_ids(
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    *,
    bos: int | None,
    eos: int | None,
    pad: int | None,
) -> SpecialIds:
    """The ids that the tokenizer names (bos, eos, pad); else those of generation_config.json; else
    those of config.json. Whatever any of the three calls an end ends a text."""

    def of(key: str, own: int | None) -> list[int]:
        return [*token_ids(own), *token_ids(generation.get(key)), *token_ids(config.get(key))]

    return SpecialIds(
        bos=next(iter(of("bos_token_id", bos)), None),
        ends=tuple(dict.fromkeys(of("eos_token_id", eos))),
        pad=next(iter(of("pad_token_id", pad)), None),
    )


def token_ids(value: object) -> list[int]:
    """An id, or a list of them. -1 and the like stand for none."""
    values = value if isinstance(value, list) else [value]
    return [n for n in values if isinstance(n, int) and not isinstance(n, bool) and n >= 0]


def lacks_end(config: Mapping[str, Any], folder: Path) -> bool:
    """Whether a model's files show that nothing says how a text ends. False where they do not tell:
    most of transformers' classes of tokenizers have an end of their own."""
    generation = generation_config(folder)
    if settle_special_ids(config, generation, bos=None, eos=None, pad=None).ends:
        return False
    path = folder / "tokenizer_config.json"
    named = str(read_json(path).get("tokenizer_class")) if path.is_file() else ""
    plain = named.removesuffix("Fast") in ("PreTrainedTokenizer", "TokenizersBackend")
    return plain and "eos_token" not in read_tokenizer(folder).special


def no_end_of_text(folder: Path) -> tuple[str, str]:
    """What is said of such a model, and what would help."""
    return (
        f"nothing in {folder} says which token ends a text",
        "name it in tokenizer_config.json (eos_token) or config.json (eos_token_id)",
    )


def generation_config(folder: Path) -> dict[str, Any]:
    """A model's generation_config.json, empty where there is none. ModelError if it is damaged."""
    return read_json(folder / GENERATION) if (folder / GENERATION).exists() else {}


def check_padding(facts: Facts) -> None:
    """ModelError for a pad_token_id that transformers opens no model with."""
    pad = facts.config.get("pad_token_id")
    if pad is not None and (not isinstance(pad, int) or pad >= facts.vocab_size):
        raise ModelError(
            f"config.json has pad_token_id: {repr(pad)[:60]}, which is no token id below its "
            f"vocab_size ({facts.vocab_size}), and transformers refuses it",
            hint="name a token that the model has, such as its end-of-text token, or write null",
        )


def check_tokenizer(facts: Facts, folder: Path) -> list[str]:
    """What a tokenizer's files give reason to warn of, a sentence each. ModelError where it cannot
    be read, or where a text would begin or end with a token that the model has no embedding for."""
    files, last = read_tokenizer(folder), facts.vocab_size - 1
    named = {key: files.special.get(f"{key}_token") for key in ("bos", "eos", "pad")}
    found = settle_special_ids(facts.config, generation_config(folder), **named)
    tokens = {number: token for token, number in files.ids.items() if number > last}
    for what, number in (("ends", found.end), ("begins", named["bos"])):
        if number is not None and number > last:
            token = f" ({tokens[number][:40]!r})" if number in tokens else ""
            raise ModelError(
                f"{folder}: a text {what} with token {number}{token}, and the model's vocabulary "
                f"ends at id {last}",
                hint="use the tokenizer that the model was trained with, or resize its embedding",
            )
    if not tokens:
        return []
    first, count = min(tokens), f"{len(tokens):,} token{'s' * (len(tokens) > 1)}"
    return [
        f"the tokenizer has {count} that the model has no embedding for, the first "
        f"{tokens[first][:40]!r} (id {first}; the model's last is {last}): a text that holds one "
        "is refused"
    ]


def check_ids(ids: Iterable[int], vocab_size: int, token_of: Callable[[int], str]) -> None:
    """ModelError for a text's token that the model has no embedding for.

    token_of: the token of an id, as the tokenizer writes it
    """
    highest = max(ids, default=-1)
    if highest >= vocab_size:
        raise ModelError(
            f"the text holds the token {token_of(highest)!r}, id {highest}, and the model's "
            f"vocabulary ends at id {vocab_size - 1}",
            hint="the tokenizer has tokens that the model was never given: use the model's own "
            "tokenizer, resize its embedding, or take such tokens out of the text",
        )
