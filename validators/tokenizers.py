# SPDX-License-Identifier: Apache-2.0
"""Whether an artefact's tokenizer is the one that its model was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


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
