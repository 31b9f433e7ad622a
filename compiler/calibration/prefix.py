# SPDX-License-Identifier: Apache-2.0
"""How a model's own tokenizer begins a text, which is how windows of text begin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunec.compiler.calibration.sources import SourceError


def prefix_of(tokenizer: Any, bos: str) -> list[int]:
    """The ids that every window begins with; `tokenizer` is one of transformers'.

    `auto`: those that the tokenizer itself puts before a text, `always`: its BOS token where these
    are none, `never`: none. What the tokenizer does is asked, not its `bos_token_id`: many name a
    BOS token that they never use. SourceError where `always` has no token to take.
    """
    if bos == "never":
        return []
    whole = tokenizer("x", verbose=False)["input_ids"]
    own = tokenizer("x", add_special_tokens=False, verbose=False)["input_ids"]
    places = (at for at in range(len(whole)) if whole[at : at + len(own)] == own)
    at = next(places, None)
    if at is None:
        raise SourceError(
            "the tokenizer splits a text otherwise where it adds special tokens",
            hint="bos: never leaves them out",
        )
    if at or bos == "auto":
        return [int(token) for token in whole[:at]]
    if tokenizer.bos_token_id is None:
        raise SourceError(
            "bos is always, and the tokenizer has no BOS token", hint="bos: auto goes without"
        )
    return [int(tokenizer.bos_token_id)]


def begun(content: Tensor, prefix: list[int]) -> Tensor:
    """[windows, prefix + length]: the windows with the prefix before each.

    content: [windows, length] token ids
    """
    before = torch.tensor(prefix, dtype=content.dtype).expand(len(content), len(prefix))
    return torch.cat([before, content], dim=1)
