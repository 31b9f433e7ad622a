# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's files as their headers describe them: no weight is read, no torch needed."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

from prunec.compiler.model.errors import ModelError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MAX_HEADER = 100_000_000  # the format's own limit
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8}
_BITS |= {"U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8}
_DTYPE, _MOST_AXES = re.compile(r"[A-Z0-9_]{1,20}"), 64
#: Weights that are no checkpoint of ours, and what is said of them.
_OTHERS = (
    (f"as safetensors of other names ({{}}), without {SINGLE} or {INDEX}", (".safetensors",)),
    ("as GGUF only ({})", (".gguf",)),
    (
        "as pickles only ({}), which prunec never opens",
        (".bin", ".pt", ".pth", ".ckpt", ".pkl"),
    ),
)
_SAVE = f"save the model with transformers' save_pretrained, which writes {SINGLE}"
_BLOCK = 2**22  # bytes of a tensor that are looked at together


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
        raise ModelError(f"{path} cannot be read: {_brief(error)}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} does not hold a JSON object")
    return content


def shard_names(folder: Path) -> list[str]:
    """The checkpoint's safetensors files, in order. None of them may lie outside the folder."""
    names, single = indexed_names(folder), (folder / SINGLE).exists()
    if names and single and SINGLE not in names:  # transformers reads the one, vLLM the others
        raise ModelError(
            f"{folder} holds {SINGLE}, and an {INDEX} that names other files",
            hint="one of the two is left over from another model: remove it",
        )
    if not names and single:
        names = [SINGLE]
    if not names:
        refuse_other_weights(folder)
        raise ModelError(f"{folder} holds neither {SINGLE} nor {INDEX}", hint=_SAVE)
    present = {path.name for path in folder.iterdir() if path.is_file()}
    for name in names:
        if name not in present:
            raise ModelError(f"{folder}: {name[:80]!r} is missing, though the index names it")
        check_inside(folder, name)
    return names


def indexed_names(folder: Path) -> list[str]:
    """The shards that an index names, in order; none without an index."""
    if not (folder / INDEX).exists():
        return []
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{folder / INDEX} has no weight_map")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise ModelError(f"{folder / INDEX} names a shard outside its folder: {name[:80]!r}")
    return names


def refuse_other_weights(folder: Path) -> None:
    """ModelError for a folder that holds weights in other forms than a checkpoint of ours."""
    if (folder / SINGLE).exists() or (folder / INDEX).exists():
        return
    names = sorted(path.name for path in folder.iterdir())
    for what, suffixes in _OTHERS:
        found = [name for name in names if name.endswith(suffixes)]
        if found:
            count = f"{found[0]}, one of {len(found)}" if found[1:] else found[0]
            raise ModelError(f"{folder} holds its weights {what.format(count)}", hint=_SAVE)


def check_inside(folder: Path, name: str) -> None:
    """ModelError for a file of a checkpoint that is a link out of its folder: what lies there
    would be copied into artefacts. The hub's cache is made of links into its own `blobs`."""
    home, target = folder.resolve(), (folder / name).resolve()
    in_hub_cache = home.parent.name == "snapshots" and target.parent == home.parents[1] / "blobs"
    if not (target.is_relative_to(home) or in_hub_cache):
        raise ModelError(
            f"{folder / name} is a link that leaves its folder, to {target}",
            hint="put the file itself there",
        )


def read_headers(folder: Path) -> dict[str, TensorInfo]:
    """Name → TensorInfo of every tensor of a checkpoint, from the shards' headers alone."""
    tensors: dict[str, TensorInfo] = {}
    for shard in shard_names(folder):
        for name, entry in read_header(folder / shard).items():
            if name in tensors:
                raise ModelError(
                    f"{folder}: {name[:80]!r} is in both {tensors[name].shard} and {shard}"
                )
            tensors[name] = TensorInfo(entry["dtype"], tuple(entry["shape"]), shard)
    return tensors


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of one safetensors file: its tensors fill the file, one after the other."""
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
        if not isinstance(header, dict):
            raise ValueError("it is no JSON object")
        header.pop("__metadata__", None)
        spans = sorted(_span(name, entry) for name, entry in header.items())
    except (ValueError, RecursionError) as error:  # a ValueError is bad JSON or bad UTF-8, too
        raise ModelError(f"{path} has a damaged header: {_brief(error)}") from None
    promised = 8 + length + max((end for _, end in spans), default=0)
    if size != promised:
        raise ModelError(f"{path} is {size:,} bytes; its header promises {promised:,}")
    if any(begin != end for (_, end), (begin, _) in pairwise([(0, 0), *spans])):
        raise ModelError(f"{path} has a damaged header: its tensors overlap or leave gaps")
    return header


def value_blocks(path: Path, name: str) -> Iterator[bytes]:
    """A tensor's bytes as a safetensors file holds them, some at a time."""
    begin, end = read_header(path)[name]["data_offsets"]
    try:
        with path.open("rb") as file:
            file.seek(8 + struct.unpack("<Q", file.read(8))[0] + begin)
            for at in range(begin, end, _BLOCK):
                yield file.read(min(_BLOCK, end - at))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None


def _span(name: str, entry: Any) -> tuple[int, int]:
    """Where a tensor begins and ends. ValueError if that cannot be."""
    told = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = told.get("dtype"), told.get("shape"), told.get("data_offsets")
    if not isinstance(dtype, str) or not _DTYPE.fullmatch(dtype):
        raise ValueError(f"{name!r} has no dtype")
    if not _are_lengths(shape) or len(shape) > _MOST_AXES:
        raise ValueError(f"{name!r} has no shape")
    if not _are_lengths(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{name!r} has no data_offsets that say where it begins and ends")
    begin, end = offsets
    if dtype in _BITS and (end - begin) * 8 != math.prod(shape) * _BITS[dtype]:
        raise ValueError(f"{name!r} has another size than its shape says")
    return begin, end


def _are_lengths(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(length) is int and length >= 0 for length in value)


def _brief(error: Exception) -> str:
    """One line, not too long: a header may hold names of any kind."""
    return " ".join(str(error).split())[:200]
