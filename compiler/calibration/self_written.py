# SPDX-License-Identifier: Apache-2.0
"""Text that a language model writes by itself: windows of tokens, sampled.

A base model writes a sample of what it was trained on, as it remembers it; a model that was tuned
to answer writes whatever its training put behind an empty prompt. Neither is text of a domain that
the user cares for, if the model would not come to it by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from prunec.compiler.calibration.sources import SourceError


@torch.no_grad()
def write_windows(
    model: Any,
    start: int,
    ends: Collection[int],
    luck: Tensor,
    temperature: float,
    on_token: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """[windows, length] token ids on the CPU, of a transformers model.

    Every window begins with `start`; behind one of `ends` the next text begins, again with `start`,
    and knows nothing of the text before. luck: [windows, length] in [0, 1): place i of a window
    gets the token at quantile luck[i] of the model's distribution, so that a window does not depend
    on those beside it, but for rounding. SourceError where the model gives no distribution.
    """
    windows, length = luck.shape
    luck = luck.to(model.device)
    ids = torch.full((windows, length), start, device=model.device)
    begins = torch.zeros(windows, 1, dtype=torch.long, device=model.device)
    last = torch.tensor(sorted(ends), device=model.device)
    place = torch.arange(length, device=model.device)
    cache, sound = None, torch.tensor(True, device=model.device)
    for at in range(1, length):
        # Earlier texts are masked, as padding on the left is.
        out = model(
            input_ids=ids[:, at - 1 : at],
            attention_mask=(place[:at] >= begins).long(),
            position_ids=at - 1 - begins,
            past_key_values=cache,
            use_cache=True,
        )
        cache, logits = out.past_key_values, out.logits[:, -1]
        sound &= logits.isfinite().any(dim=-1).all() & ~logits.isnan().any()
        ended = torch.isin(ids[:, at - 1], last) & (ids[:, at - 1] != start)
        ids[:, at] = torch.where(ended, start, at_quantile(logits, temperature, luck[:, at]))
        begins[ids[:, at] == start] = at
        on_token(at)
    if not sound:
        raise SourceError(
            "the model's logits hold NaN where it writes text",
            hint="model.dtype: bfloat16 or float32 may do",
        )
    return ids.cpu()


def at_quantile(logits: Tensor, temperature: float, luck: Tensor) -> Tensor:
    """[rows]: where each row's cumulative distribution, in the order of token ids, exceeds `luck`.

    logits: [rows, vocab]; with luck: [rows] uniform on [0, 1) this samples from the softmax of
    logits / temperature. Of a row of NaN, some token.
    """
    probabilities = (logits.float() / temperature).softmax(dim=-1)
    below = probabilities.double().cumsum(dim=-1)
    wanted = luck.double()[:, None] * below[:, -1:]
    found = torch.searchsorted(below, wanted, right=True)[:, 0]
    return found.clamp(max=logits.shape[1] - 1)


def luck_of(window: int, length: int, seed: int, temperature: float) -> Tensor:
    """[length] float32 in [0, 1), of one window, by the window's own number.

    The temperature takes part, so that two temperatures of one seed give unlike texts.
    """
    name = f"{seed}:{temperature!r}:{window}".encode()
    own = int.from_bytes(hashlib.sha256(name).digest()[:8]) >> 1
    return torch.rand(length, generator=torch.Generator().manual_seed(own))
