# SPDX-License-Identifier: Apache-2.0
"""Whether an artefact's tokenizer is the one that its model was trained with, and what it lacks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunec.validators.headers import read_json_object


def tokenizer_difference(expected: Any, found: Any, texts: Sequence[str]) -> str | None:
    """The first difference of two tokenizers of transformers as a sentence, or None.

    Tokens that both have must have one id in both, and texts must become the same: equal tokens can
    be merged in another order. A token that only one has is no difference by itself: classes of
    tokenizers bring some of their own. A model that gets another's ids answers nonsense without
    any error.
    """
    theirs, ours = expected.get_vocab(), found.get_vocab()
    odd = [token for token in theirs.keys() & ours.keys() if theirs[token] != ours[token]]
    if odd:
        token = min(odd, key=lambda token: (theirs[token], token))
        return (
            f"the tokenizer is another one: {token!r} is token {ours[token]}, "
            f"it should be {theirs[token]}"
        )
    if expected.eos_token_id != found.eos_token_id:
        return (
            f"the tokenizer ends a text with token {found.eos_token_id}, "
            f"it should be {expected.eos_token_id}"
        )
    for text in texts:
        due, made = (tokenizer(text)["input_ids"] for tokenizer in (expected, found))
        if due != made:
            return f"the tokenizer is another one: {text[:40]!r} becomes {made[:8]}, not {due[:8]}"
    return None


def complete_special_tokens(tokenizer: Any, folder: Path) -> Any:
    """The tokenizer, given what lm-eval fails without: an end of text, which generation_config.json
    or config.json names where it names none; and padding that its model has an embedding for."""
    config = read_json_object(folder / "config.json")
    file = folder / "generation_config.json"
    generation = read_json_object(file) if file.is_file() else {}
    for ids in (generation.get("eos_token_id"), config.get("eos_token_id")):
        first = ids[0] if isinstance(ids, list) and ids else ids
        if tokenizer.eos_token_id is None and type(first) is int and first >= 0:
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(first)
    pad, size = tokenizer.pad_token_id, config.get("vocab_size")
    if pad is not None and type(size) is int and pad >= size:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked, whatever it is
    return tokenizer
