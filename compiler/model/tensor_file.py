# SPDX-License-Identifier: Apache-2.0
"""Safetensors files, written a piece of a tensor at a time.

safetensors' own `save_file` wants all tensors of a file in memory at once, at the dtype and in the
layout that they are stored in. The format asks for no such thing: an 8-byte little-endian length, a
JSON header of that length, then the tensors' bytes one behind the other. What is written here is
byte for byte what `save_file` writes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

#: Values that are converted together.
_PIECE = 2**20

#: torch's dtypes by their names in the format, in the order in which its tensors are laid out:
#: what needs the widest alignment comes first.
_NAMES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_PLACES = {dtype: place for place, dtype in enumerate(_NAMES)}


class Sliced(Protocol):
    """A tensor, or what is read by slices of its first axis as one."""

    @property
    def shape(self) -> torch.Size: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __getitem__(self, rows: slice, /) -> Tensor: ...


@dataclass(frozen=True)
class TensorSpec:
    """What a file is to hold of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class FileLayout:
    """A file's first bytes, and where each tensor begins behind them, in the file's order."""

    head: bytes = field(repr=False)
    begins: Mapping[str, int]


def lay_out(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> FileLayout:
    """Where the tensors of a file are to lie. KeyError for a dtype that is not in the format."""
    described: dict[str, object] = {"__metadata__": dict(metadata)}
    begins, end = {}, 0
    for name in sorted(specs, key=lambda name: (_PLACES[specs[name].dtype], name)):
        spec, begin = specs[name], end
        end += spec.nbytes
        begins[name] = begin
        described[name] = {
            "dtype": _NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [begin, end],
        }
    header = json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    head = len(header).to_bytes(8, "little") + header
    return FileLayout(head, {name: len(head) + begin for name, begin in begins.items()})


def pieces(tensor: Sliced, dtype: torch.dtype) -> Iterator[memoryview]:
    """A tensor's values in order, as the bytes of a dtype; from any device, of any strides."""
    if not tensor.shape:
        assert isinstance(tensor, Tensor)
        tensor = tensor.reshape(1)
    step = max(1, _PIECE // max(1, math.prod(tensor.shape[1:])))
    for start in range(0, tensor.shape[0], step):
        piece = tensor[start : start + step].detach().to("cpu", dtype).contiguous()
        yield piece.view(-1).view(torch.uint8).numpy().data


def save(
    path: Path,
    tensors: Mapping[str, Sliced],
    metadata: Mapping[str, str],
    dtypes: Mapping[str, torch.dtype] | None = None,
) -> str:
    """Write a file of tensors; its SHA-256. `dtypes` are of those that are stored at another."""
    dtypes = dtypes or {}
    specs = {
        name: TensorSpec(dtypes.get(name, tensor.dtype), tuple(tensor.shape))
        for name, tensor in tensors.items()
    }
    layout = lay_out(specs, metadata)
    digest = hashlib.sha256(layout.head)
    with path.open("wb") as file:
        file.write(layout.head)
        for name in layout.begins:
            for piece in pieces(tensors[name], specs[name].dtype):
                file.write(piece)
                digest.update(piece)
    return digest.hexdigest()


class TensorFile:
    """A file whose tensors come one by one, in any order; each has its place."""

    def __init__(
        self, path: Path, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]
    ) -> None:
        self._path, self._specs = path, specs
        layout = lay_out(specs, metadata)
        self._begins = layout.begins
        path.write_bytes(layout.head)

    def write(self, name: str, tensor: Tensor) -> None:
        """Of the shape that was said; converted to the dtype that was."""
        with self._path.open("r+b") as file:  # opened anew: a model may have very many shards
            file.seek(self._begins[name])
            file.writelines(pieces(tensor, self._specs[name].dtype))


def split(specs: Mapping[str, TensorSpec], max_bytes: int) -> list[dict[str, TensorSpec]]:
    """Tensors in order, in as few files as hold at most `max_bytes` of them, or one tensor."""
    shards: list[dict[str, TensorSpec]] = [{}]
    size = 0
    for name, spec in specs.items():
        if shards[-1] and size + spec.nbytes > max_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = spec
        size += spec.nbytes
    return shards
