# SPDX-License-Identifier: Apache-2.0
"""Whether an artefact's tokenizer is the one that its model was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def tokenizer_difference(expected: Any, found: Any, texts: Sequence[str]) -> str | None:
    """The first difference of two tokenizers of transformers as a sentence, or None.

    Their vocabularies are compared whole, and what they make of some texts: equal tokens can be
    merged in another order. A model that gets another's ids answers nonsense without any error.
    """
    theirs, ours = expected.get_vocab(), found.get_vocab()
    if odd := theirs.items() ^ ours.items():
        token = min(odd, key=lambda item: item[::-1])[0]
        here, there = (v.get(token, "absent") for v in (ours, theirs))
        return f"the tokenizer is another one: {token!r} is token {here}, it should be {there}"
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
