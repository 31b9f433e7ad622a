# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint folder's files say without torch: JSON and safetensors headers.

A safetensors file is an 8-byte little-endian length, a JSON header of that length, then data
(https://huggingface.co/docs/safetensors). Deliberately not the compiler's reader: a validator
that shared it would share its mistakes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from prunec.validators.errors import ValidationError

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_BLOCK = 1 << 22
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8}
_BITS |= {"U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8}


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor as its file's header describes it; `begin` is where its values begin there."""

    dtype: str
    shape: tuple[int, ...]
    file: str
    begin: int

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes_per_value(self) -> int:
        """0 for a dtype that is not known here."""
        return _BITS.get(self.dtype, 0) // 8


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, or a ValidationError that names the file."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValidationError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValidationError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ValidationError(f"{path} does not hold a JSON object")
    return content


def weight_files(folder: Path) -> dict[str, frozenset[str] | None]:
    """File name → the tensors that the index places in it (None without an index).

    ValidationError where there are no safetensors or the index is damaged or points elsewhere.
    """
    if not (folder / _INDEX).exists():
        if not (folder / _SINGLE).is_file():
            raise _no_weights(folder)
        return {_SINGLE: None}
    weight_map = read_json_object(folder / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValidationError(f"{folder / _INDEX} has no weight_map")
    placed: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name or not name.isprintable():
            raise ValidationError(
                f"{folder / _INDEX} places {_short(tensor)} outside its folder: {repr(name)[:200]}"
            )
        placed.setdefault(name, set()).add(tensor)
    if (folder / _SINGLE).exists() and _SINGLE not in placed:  # tools differ in what they read
        raise ValidationError(
            f"{folder} holds {_SINGLE}, and an {_INDEX} that names other files",
            hint="one of the two is left over from another model: remove it",
        )
    return {name: frozenset(tensors) for name, tensors in sorted(placed.items())}


def _no_weights(folder: Path) -> ValidationError:
    """What is there in place of safetensors with an index, and what makes them of it."""
    if shards := sorted(path.name for path in folder.glob("*.safetensors")):
        return ValidationError(
            f"{folder} has {len(shards)} safetensors files such as {shards[0]}, and no {_INDEX} "
            "that says which tensors are in which",
            hint=f"copy {_INDEX} beside them, or save the model with save_pretrained",
        )
    if pickles := sorted(p.name for suffix in _PICKLES for p in folder.glob(f"*{suffix}")):
        return ValidationError(
            f"{folder} holds its weights as pickles only ({pickles[0]}), which prunec never opens: "
            "opening one runs the code in it",
            hint="where you trust it, load it and save it again with save_pretrained",
        )
    return ValidationError(
        f"{folder} has no safetensors weights",
        hint=f"expected {_SINGLE}, or {_INDEX} and its shards",
    )


def read_header(path: Path) -> dict[str, TensorHeader]:
    """Name → header of every tensor of one file; ValidationError if it is damaged or cut short."""
    damaged = f"{path} is not a safetensors file, or is damaged"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise ValidationError(damaged)
            entries = json.loads(file.read(length))
        if not isinstance(entries, dict):
            raise ValueError("its header is no JSON object")
        entries.pop("__metadata__", None)
        headers, spans = {}, []
        for name, entry in entries.items():
            dtype, shape, begin, stop = _entry(name, entry)
            headers[name] = TensorHeader(dtype, shape, path.name, 8 + length + begin)
            spans.append((begin, stop))
            known = headers[name].bytes_per_value
            if known and stop - begin != headers[name].parameters * known:
                raise ValueError(f"{_short(name)} has another size than its shape says")
        end = 0
        for begin, stop in sorted(spans):  # the format allows neither gaps nor overlaps
            if begin != end:
                raise ValueError("its tensors overlap or leave gaps")
            end = stop
    except FileNotFoundError:
        raise ValidationError(f"{path} is missing") from None
    except OSError as error:
        raise ValidationError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValidationError(f"{damaged}: {error}") from None
    if size != 8 + length + end:
        raise ValidationError(
            f"{path} has {size:,} bytes; its header promises {8 + length + end:,}"
        )
    return headers


def value_blocks(folder: Path, tensor: TensorHeader) -> Iterator[bytes]:
    """A tensor's values as bytes, some at a time; ValidationError if they cannot be read."""
    left = tensor.parameters * tensor.bytes_per_value
    try:
        with (folder / tensor.file).open("rb") as file:
            file.seek(tensor.begin)
            while block := file.read(min(left, _BLOCK)):
                left -= len(block)
                yield block
    except OSError as error:
        raise ValidationError(f"{folder / tensor.file} cannot be read: {error}") from None


def _entry(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """A tensor's dtype, its shape and where its values begin and end. ValueError if a header's
    entry does not say."""
    if not isinstance(entry, dict):
        raise ValueError(f"{_short(name)} is described by no JSON object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str):
        raise ValueError(f"{_short(name)} has no dtype")
    if not _counts(shape):
        raise ValueError(f"{_short(name)} has no shape")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{_short(name)} has no data_offsets that say where it begins and ends")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _counts(value: Any) -> TypeGuard[list[int]]:
    """Whether something of JSON is a list of whole numbers from 0 on; true and false are none."""
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def _short(name: str) -> str:
    """A tensor's name as it stands in a sentence."""
    return repr(name)[:80]
