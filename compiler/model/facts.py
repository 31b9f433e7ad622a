# SPDX-License-Identifier: Apache-2.0
"""What is known of a model without reading a weight: config.json and safetensors headers."""

from __future__ import annotations

import json
import operator
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.families import Family, family_of

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_FLOATS = ("BF16", "F16", "F32", "F64")
_MAX_HEADER = 100_000_000  # the format's own limit
# What reading a header raises when it is not one: bad JSON, or JSON of another structure.
_DAMAGE = (ValueError, RecursionError, TypeError, KeyError, AttributeError, IndexError)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as its shard's header describes it."""

    dtype: str
    shape: tuple[int, ...]
    shard: str


@dataclass(frozen=True)
class Facts:
    """Sizes of a dense model. `tensors` is empty when only a config was read."""

    family: Family
    config: Mapping[str, Any]
    layers: int
    hidden_size: int
    query_heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab_size: int
    tied: bool
    biased: frozenset[str]
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict)


def facts_from_config(config: Mapping[str, Any]) -> Facts:
    """Facts from a parsed config.json; ModelError if it is unsupported or incomplete."""
    family = family_of(config)
    if config.get("quantization_config"):
        raise ModelError(
            "the model is quantised; prunec prunes floating-point weights",
            hint="start from the original checkpoint and quantise the pruned one",
        )
    heads, hidden = _size(config, "num_attention_heads"), _size(config, "hidden_size")
    kv_heads = _size(config, "num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise ModelError(
            f"config.json has {heads} query heads on {kv_heads} KV heads; "
            "the first must be a multiple of the second"
        )
    biased: set[str] = set()
    if config.get("attention_bias"):
        biased |= {family.query, family.key, family.value, family.output}
    if config.get("mlp_bias"):
        biased |= {family.gate, family.up, family.down}
    return Facts(
        family=family,
        config=dict(config),
        layers=_size(config, "num_hidden_layers"),
        hidden_size=hidden,
        query_heads=heads,
        kv_heads=kv_heads,
        head_dim=_size(config, "head_dim", default=hidden // heads),
        ffn=_size(config, "intermediate_size"),
        vocab_size=_size(config, "vocab_size"),
        tied=bool(config.get("tie_word_embeddings", False)),
        biased=frozenset(biased),
    )


def facts_from_folder(folder: Path) -> Facts:
    """Facts of a checkpoint folder, its tensors' headers checked against its config.

    Raises ModelError where a file is missing or damaged or a tensor has another shape than the
    config says.
    """
    facts = facts_from_config(read_json(folder / "config.json"))
    tensors = read_headers(folder)
    facts = Facts(**{**vars(facts), "tensors": tensors})
    _check_shapes(facts, folder)
    return facts


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


def _size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(f"config.json has {key}: {value!r}; it must be a positive integer")
    return value


def _check_shapes(facts: Facts, folder: Path) -> None:
    # Imported here: layout is built on facts.
    from prunec.compiler.model.layout import dense_layout, tensor_shapes

    for name, shape in tensor_shapes(facts, dense_layout(facts)).items():
        info = facts.tensors.get(name)
        if info is None:
            raise ModelError(f"{folder} has no tensor {name}, though its config calls for it")
        if info.dtype not in _FLOATS:
            raise ModelError(f"{folder}: {name} is {info.dtype}; prunec reads {', '.join(_FLOATS)}")
        if info.shape != shape:
            raise ModelError(f"{folder}: {name} has shape {info.shape}; its config says {shape}")
