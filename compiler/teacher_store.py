# SPDX-License-Identifier: Apache-2.0
"""The dense model's next-token distributions in the store: in chunks of windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from prunec.compiler.search.divergence import TeacherDistributions
from prunec.compiler.store import Entry
from prunec.compiler.stored_tensor import open_tensors

#: Distributions that are in memory at once while they are made.
CHUNK_BYTES = 2**26


def chunks(ids: Tensor, top_k: int) -> list[slice]:
    """Slices over the windows of `ids` [windows, length], one a file."""
    windows, length = ids.shape
    size = max(1, CHUNK_BYTES // (length * (8 * top_k + 4)))
    return [slice(start, min(start + size, windows)) for start in range(0, windows, size)]


def has_chunk(entry: Entry, number: int) -> bool:
    """Whether a chunk is there, and sound."""
    return entry.tensor_file(_name(number)) is not None


def save_chunk(entry: Entry, number: int, parts: Sequence[TeacherDistributions]) -> None:
    """Save a chunk that was made in parts, its windows in order."""
    entry.save_tensors(
        _name(number),
        {
            "ids": torch.cat([part.ids for part in parts]),
            "log_probs": torch.cat([part.log_probs for part in parts]),
            "log_tail": torch.cat([part.log_tail for part in parts]),
        },
    )


class StoredTeacher:
    """Distributions that are read from the store whenever some of them are asked for."""

    def __init__(self, entry: Entry, windows: Sequence[slice], device: torch.device) -> None:
        """windows: of every chunk. LostResultError where a chunk is missing or damaged."""
        self._windows = windows
        self._chunks = [open_tensors(entry, _name(number))[0] for number in range(len(windows))]
        self._device = device

    def __getitem__(self, windows: slice | Tensor) -> TeacherDistributions:
        """Those of some windows, on the device. OSError where the disk fails."""
        parts = [*self._parts(windows)]

        def rows(name: str) -> Tensor:
            return torch.cat([self._chunks[n][name][some].to(self._device) for n, some in parts])

        return TeacherDistributions(rows("ids"), rows("log_probs"), rows("log_tail"))

    def _parts(self, windows: slice | Tensor) -> Iterator[tuple[int, slice]]:
        """(chunk, rows of it) that hold some windows."""
        if isinstance(windows, Tensor):
            for one in windows.tolist():
                yield from self._parts(slice(one, one + 1))
            return
        start, stop, _ = windows.indices(self._windows[-1].stop)
        for number, chunk in enumerate(self._windows):
            first, last = max(start, chunk.start), min(stop, chunk.stop)
            if first < last:
                yield number, slice(first - chunk.start, last - chunk.start)


def _name(number: int) -> str:
    return f"teacher-{number:04}"
