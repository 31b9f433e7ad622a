# SPDX-License-Identifier: Apache-2.0
"""The dense model's next-token distributions of a whole training text: on disk, in parts.

A part is a file of the store: written whole, so that a killed pass over the text goes on at the
next part, and mapped into memory when read, so that memory holds the windows that are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.layout import dense_layout
from prunec.compiler.recovery.sizes import PART_TOKENS, SMALL_VOCABULARY
from prunec.compiler.search.divergence import TeacherDistributions
from prunec.compiler.store import Entry, LostResultError

#: Logits that are held at once.
_LOGITS = 2**27


@torch.no_grad()
def write_distributions(
    decoder: Decoder,
    ids: Tensor,
    top_k: int,
    entry: Entry,
    on_tokens: Callable[[int], None] = lambda done: None,
) -> None:
    """Save the distributions at every position of `ids` [windows, length]; sound parts stay."""
    for number, part in enumerate(_parts(*ids.shape)):
        if entry.tensor_file(_name(number)) is None:
            entry.save_tensors(_name(number), _part(decoder, ids[part], top_k))
        on_tokens(part.stop * ids.shape[1])


def _part(decoder: Decoder, ids: Tensor, top_k: int) -> dict[str, Tensor]:
    facts, (windows, length) = decoder.facts, ids.shape
    hidden = decoder.embed(ids)
    for index, spec in enumerate(dense_layout(facts)):
        layer = decoder.layer(index, spec, decoder.layer_tensors(index))
        for batch in decoder.batches(windows, length):
            hidden[batch] = decoder.feed(layer, decoder.attend(layer, hidden[batch]))
    small = facts.vocab_size <= SMALL_VOCABULARY
    size = max(1, _LOGITS // (length * facts.vocab_size))
    found: dict[str, list[Tensor]] = {"ids": [], "log_probs": [], "log_tail": []}
    for window in range(0, windows, size):
        logits = decoder.logits(hidden[window : window + size])
        some = TeacherDistributions.from_logits(logits, top_k)
        found["ids"].append(some.ids.to(torch.uint16 if small else torch.int32).cpu())
        found["log_probs"].append(some.log_probs.half().cpu())
        found["log_tail"].append(some.log_tail.cpu())
    return {name: torch.cat(pieces) for name, pieces in found.items()}


class StoredTeacher:
    """Distributions that `write_distributions` has saved, read window by window."""

    def __init__(self, entry: Entry, windows: int, length: int) -> None:
        """Raises LostResultError where a part is missing or damaged."""
        from safetensors import safe_open

        self._size = _windows_of(length)
        self._parts: list[Any] = []
        for number in range(math.ceil(windows / self._size)):
            path = entry.tensor_file(_name(number))
            if path is None:
                raise LostResultError(entry, _name(number))
            self._parts.append(safe_open(path, framework="pt"))

    def read(self, windows: Sequence[int]) -> TeacherDistributions:
        """Of these windows, in this order, on the CPU."""
        return TeacherDistributions(
            self._rows("ids", windows).to(torch.int32),
            self._rows("log_probs", windows).float(),
            self._rows("log_tail", windows),
        )

    def _rows(self, name: str, windows: Sequence[int]) -> Tensor:
        rows = []
        for window in windows:
            part, row = divmod(window, self._size)
            rows.append(self._parts[part].get_slice(name)[row : row + 1])
        return torch.cat(rows)


def _parts(windows: int, length: int) -> list[slice]:
    size = _windows_of(length)
    return [slice(start, min(start + size, windows)) for start in range(0, windows, size)]


def _windows_of(length: int) -> int:
    return max(1, PART_TOKENS // length)


def _name(number: int) -> str:
    return f"part-{number:05}"
