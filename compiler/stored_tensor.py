# SPDX-License-Identifier: Apache-2.0
"""Tensors of the store that stay in their file: what is asked for is read, and nothing kept.

They are read by system calls, not mapped: pages of a mapped file count as the memory of who has
looked at them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from prunec.compiler.model.headers import read_header
from prunec.compiler.store import Entry, LostResultError

#: Of what is read this way, by the names that they have in the format.
_DTYPES = {"F32": torch.float32, "I32": torch.int32, "I64": torch.int64}


class StoredTensor:
    """A tensor in a safetensors file, read by slices of its first axis."""

    def __init__(
        self, file: BufferedReader, begin: int, dtype: torch.dtype, shape: Sequence[int]
    ) -> None:
        """begin: where its values begin in the file"""
        self.shape = torch.Size(shape)
        self.dtype = dtype
        self._file = file
        self._begin = begin

    def __getitem__(self, rows: slice) -> Tensor:
        """Some rows, on the CPU. OSError where the file has become shorter."""
        start, stop, _ = rows.indices(self.shape[0])
        found = torch.empty(stop - start, *self.shape[1:], dtype=self.dtype)
        self._file.seek(self._begin + start * math.prod(self.shape[1:]) * self.dtype.itemsize)
        values = found.view(-1).view(torch.uint8).numpy().data
        if self._file.readinto(values) != found.nbytes:
            raise OSError(f"{self._file.name} is shorter than it was")
        return found


def open_tensors(entry: Entry, name: str) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """As `Entry.require_tensors`, but for when the tensors are read: checked once, here.

    LostResultError if what was saved is missing or damaged.
    """
    path = entry.tensor_file(name)
    if path is None:
        raise LostResultError(entry, name)
    with safe_open(path, framework="pt") as header:
        facts: dict[str, Any] = json.loads(header.metadata()["facts"])
    return _tensors(path), facts


def _tensors(path: Path) -> dict[str, StoredTensor]:
    header = read_header(path)
    file = path.open("rb")  # stays open while a tensor of it is there, even if it loses its name
    # The tensors fill the file up to its end.
    begin = path.stat().st_size - max(entry["data_offsets"][1] for entry in header.values())
    return {
        name: StoredTensor(
            file, begin + entry["data_offsets"][0], _DTYPES[entry["dtype"]], entry["shape"]
        )
        for name, entry in header.items()
    }
