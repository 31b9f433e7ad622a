# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's files as their headers describe them: no weight is read, no torch needed."""

from __future__ import annotations

import json
import operator
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunec.compiler.model.errors import ModelError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MAX_HEADER = 100_000_000  # the format's own limit
# What reading a header raises when it is not one: bad JSON, or JSON of another structure.
_DAMAGE = (ValueError, RecursionError, TypeError, KeyError, AttributeError, IndexError)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as its shard's header describes it."""

    dtype: str
    shape: tuple[int, ...]
    shard: str


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or ModelError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} does not hold a JSON object")
    return content


def shard_names(folder: Path) -> list[str]:
    """The checkpoint's safetensors files, in order. None of them may lie outside the folder."""
    if (folder / INDEX).exists():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelError(f"{folder / INDEX} has no weight_map")
        names = sorted({str(name) for name in weight_map.values()})
    elif (folder / SINGLE).exists():
        names = [SINGLE]
    else:
        raise ModelError(
            f"{folder} holds neither {SINGLE} nor {INDEX}",
            hint="prunec reads safetensors only; save the model with save_pretrained first",
        )
    present = {path.name for path in folder.iterdir() if path.is_file()}
    for name in names:
        if Path(name).name != name:
            raise ModelError(f"{folder / INDEX} names a shard outside its folder: {name!r}")
        if name not in present:
            raise ModelError(f"{folder / name} is missing, though the index names it")
    return names


def read_headers(folder: Path) -> dict[str, TensorInfo]:
    """Name → TensorInfo of every tensor of a checkpoint, from the shards' headers alone."""
    tensors: dict[str, TensorInfo] = {}
    for shard in shard_names(folder):
        for name, entry in read_header(folder / shard).items():
            tensors[name] = TensorInfo(entry["dtype"], tuple(entry["shape"]), shard)
    return tensors


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of one safetensors file, its offsets checked against the file's size."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
            if length > min(size - 8, _MAX_HEADER):
                raise ModelError(f"{path} is not a safetensors file, or is cut short")
            content = file.read(length)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    try:
        header = json.loads(content)
        header.pop("__metadata__", None)
        ends = [operator.index(entry["data_offsets"][1]) for entry in header.values()]
        for entry in header.values():
            tuple(entry["shape"]), str(entry["dtype"])
    except _DAMAGE as error:
        raise ModelError(f"{path} has a damaged header: {error}") from None
    promised = 8 + length + max(ends, default=0)
    if size != promised:
        raise ModelError(f"{path} is {size:,} bytes; its header promises {promised:,}")
    return dict(header)
