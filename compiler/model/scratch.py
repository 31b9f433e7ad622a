# SPDX-License-Identifier: Apache-2.0
"""Tensors that lie in a file while they are not worked on.

They are read and written by system calls, not mapped: what is in the system's cache of a file can
always be taken from it, and counts as nobody's memory. The files have no name, so that nothing is
left behind, however a process ends.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

#: One call moves no more: Linux ends at 2 GiB.
_CALL_BYTES = 2**30


class FileTensor:
    """A tensor in a file of its own, read and written by slices of its first axis."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, scratch: Path) -> None:
        """Holds zeros at first, which take no place on the disk."""
        scratch.mkdir(parents=True, exist_ok=True)
        self.shape = torch.Size(shape)
        self.dtype = dtype
        self._row_bytes = math.prod(self.shape[1:]) * dtype.itemsize
        self._file = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115  # open as long as this is
        os.truncate(self._file.fileno(), self.shape[0] * self._row_bytes)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Tensor:
        """A copy of some rows, on the CPU. OSError where the disk fails."""
        start, stop, _ = rows.indices(len(self))
        found = torch.empty(stop - start, *self.shape[1:], dtype=self.dtype)
        for offset, piece in self._pieces(found, start):
            if os.preadv(self._file.fileno(), [piece], offset) != len(piece):
                raise OSError(f"a scratch file is shorter than it was: {self._file.name}")
        return found

    def __setitem__(self, rows: slice, values: Tensor) -> None:
        """OSError where the disk is full."""
        start, stop, _ = rows.indices(len(self))
        values = values.detach().to("cpu", self.dtype).expand(stop - start, *self.shape[1:])
        for offset, piece in self._pieces(values.contiguous(), start):
            written = 0
            while written < len(piece):  # a disk that fills up takes a part first
                left = [piece[written:]]
                written += os.pwritev(self._file.fileno(), left, offset + written)

    def _pieces(self, tensor: Tensor, start: int) -> list[tuple[int, memoryview]]:
        """A contiguous tensor's bytes, and where in the file they belong."""
        whole = memoryview(tensor.view(-1).view(torch.uint8).numpy().data)
        here = range(0, len(whole), _CALL_BYTES)
        return [(start * self._row_bytes + at, whole[at : at + _CALL_BYTES]) for at in here]
