# SPDX-License-Identifier: Apache-2.0
"""Per-layer shapes of a checkpoint, derived from its tensors and held against its config.json."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prunec.validators.headers import TensorHeader

_LAYER = re.compile(r"model\.layers\.(\d{1,4})\.(.+)")
_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
#: In the place of several: their rows one behind the other.
_FUSED_ATTENTION, _FUSED_MLP = "self_attn.qkv_proj", "mlp.gate_up_proj"
_PROJECTIONS = (*_ATTENTION, *_MLP, _FUSED_ATTENTION, _FUSED_MLP)
_ATTENTION_NORMS = ("input_layernorm", "self_attn.q_norm", "self_attn.k_norm")
_MLP_NORMS = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
_BETWEEN = "post_attention_layernorm"
_PER_LAYER = "per_layer_config"
_BLOCKS = "block_configs"  # of DeciLM, vLLM's stock dialect
_SIZES = {
    "num_attention_heads": "query_heads",
    "num_key_value_heads": "kv_heads",
    "intermediate_size": "ffn",
}


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One decoder layer as its tensors say. Zero KV heads: no attention; zero ffn: no MLP."""

    query_heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    query_groups: tuple[int, ...] | None = None
    """Query heads of each KV head where the config says that these differ."""

    @property
    def attention(self) -> bool:
        return self.kv_heads > 0

    @property
    def mlp(self) -> bool:
        return self.ffn > 0

    def as_dict(self) -> dict[str, int | bool | list[int]]:
        uneven = {"query_groups": list(self.query_groups)} if self.query_groups else {}
        return {
            "query_heads": self.query_heads,
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "ffn": self.ffn,
            "attention": self.attention,
            "mlp": self.mlp,
            **uneven,
        }


def is_prunable(name: str) -> bool:
    """Whether a tensor is a weight or bias of an attention or MLP projection of a layer."""
    match = _LAYER.fullmatch(name)
    return match is not None and match[2].rpartition(".")[0] in _PROJECTIONS


def layer_shapes(
    tensors: Mapping[str, TensorHeader], config: Mapping[str, Any]
) -> tuple[tuple[LayerShape, ...], list[str]]:
    """The shape of every layer, and a sentence for every disagreement with itself or the config.

    No layers for an architecture whose projections go by other names.
    """
    by_layer: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, header in tensors.items():
        if match := _LAYER.fullmatch(name):
            by_layer.setdefault(int(match[1]), {})[match[2]] = header.shape
    known = [f"{name}.weight" for name in _PROJECTIONS]
    if not any(name in layer for layer in by_layer.values() for name in known):
        return (), []

    problems: list[str] = []
    expected = _expected(config, problems)
    seen = max(by_layer) + 1
    if seen > len(expected):
        problems.append(f"config.json says {len(expected)} layers; the tensors hold {seen}")
    head_dim, hidden = _head_dim(config), config.get("hidden_size")
    norms = _norms(by_layer.values())
    shapes = []
    for index in range(max(seen, len(expected))):
        layer = by_layer.get(index, {})
        said = expected[index] if index < len(expected) else {}
        shape, wrong = _shape(layer, head_dim, hidden, said.get("query_groups"))
        wrong += _misplaced(layer, shape, norms)
        shapes.append(shape)
        wrong += [
            f"config.json says {said[what]} {what.replace('_', ' ')}; the tensors hold {held}"
            for what in _SIZES.values()
            if what in said and said[what] != (held := getattr(shape, what))
        ]
        problems += [f"layer {index}: {sentence}" for sentence in wrong]
    return tuple(shapes), problems


def _expected(config: Mapping[str, Any], problems: list[str]) -> list[dict[str, Any]]:
    """What the config says of every layer, in LayerShape's terms."""
    layers = config.get("num_hidden_layers")
    if type(layers) is not int or not 0 <= layers < 10_000:
        problems.append(f"config.json has num_hidden_layers: {layers!r}")
        layers = 0
    sizes = {ours: config.get(theirs) for theirs, ours in _SIZES.items()}
    if sizes["kv_heads"] is None:
        sizes["kv_heads"] = sizes["query_heads"]
    expected = [dict(sizes) for _ in range(layers)]
    blocks = config.get(_BLOCKS)
    if blocks is not None:
        if not isinstance(blocks, list) or len(blocks) != layers:
            problems.append(f"config.json has {_BLOCKS} that are not one for each of its layers")
            return []
        return [_of_block(block, sizes["query_heads"]) for block in blocks]
    stated = config.get(_PER_LAYER)
    if stated is None:
        return expected
    if not isinstance(stated, Mapping) or not all(
        str(key).isdecimal() and int(key) < layers and isinstance(entry, Mapping)
        for key, entry in stated.items()
    ):
        problems.append(f"config.json has a {_PER_LAYER} that is not of its {layers} layers")
        return []
    for key, entry in stated.items():
        layer, skipped = expected[int(key)], entry.get("skip") or ()
        layer |= {ours: entry[theirs] for theirs, ours in _SIZES.items() if theirs in entry}
        layer["query_groups"] = entry.get("query_groups")
        if "attention" in skipped:
            layer |= {"query_heads": 0, "kv_heads": 0}
        if "mlp" in skipped:
            layer["ffn"] = 0
    return expected


def _of_block(block: Any, query_heads: Any) -> dict[str, Any]:
    """A layer as DeciLM's config has it: query heads are model-wide, KV heads by their groups."""
    try:
        attention, mlp = block["attention"], block["ffn"]
        kv_heads = 0 if attention["no_op"] else query_heads // attention["n_heads_in_group"]
        ffn = 0 if mlp["no_op"] else mlp["intermediate_size"]
    except (TypeError, KeyError, ZeroDivisionError):
        return dict.fromkeys(_SIZES.values())
    return {"query_heads": query_heads if kv_heads else 0, "kv_heads": kv_heads, "ffn": ffn}


def _norms(layers: Iterable[Mapping[str, tuple[int, ...]]]) -> dict[str, str]:
    """Every norm that a model has in any layer, and the sublayer that it lives and dies with."""
    there = {name.removesuffix(".weight") for layer in layers for name in layer}
    # Between the sublayers: the MLP's own where it has no other, else the attention's last.
    between = "attention" if there & {*_MLP_NORMS} else "mlp"
    owners = dict.fromkeys(_ATTENTION_NORMS, "attention") | dict.fromkeys(_MLP_NORMS, "mlp")
    return {name: owner for name, owner in {**owners, _BETWEEN: between}.items() if name in there}


def _misplaced(
    layer: Mapping[str, tuple[int, ...]], shape: LayerShape, norms: Mapping[str, str]
) -> list[str]:
    """A sentence for every norm that is there without its sublayer, or the other way round."""
    wrong = []
    for norm, owner in norms.items():
        present = getattr(shape, owner)
        if (f"{norm}.weight" in layer) != present:
            wrong.append(f"{norm} is {'missing for' if present else 'present without'} {owner}")
    return wrong


def _head_dim(config: Mapping[str, Any]) -> int:
    """Rows of one head; 0 where the config does not say."""
    head_dim, hidden = config.get("head_dim"), config.get("hidden_size")
    heads = config.get("num_attention_heads")
    if head_dim is None and type(hidden) is int and type(heads) is int and heads > 0:
        head_dim = hidden // heads
    return head_dim if type(head_dim) is int and head_dim > 0 else 0


def _shape(
    layer: Mapping[str, tuple[int, ...]], head_dim: int, hidden: Any, groups: Any
) -> tuple[LayerShape, list[str]]:
    """One layer's shape from its tensors' shapes, and what is wrong among them."""
    wrong: list[str] = []

    def side(name: str, axis: int) -> int:
        """Size of a projection along its pruned axis; its other one must be the hidden size."""
        shape = layer.get(f"{name}.weight", ())
        if len(shape) != 2:
            wrong.append(f"{name} has shape {list(shape)}" if shape else f"{name} is missing")
            return 0
        if shape[1 - axis] != hidden:
            wrong.append(f"{name} has shape {list(shape)}; hidden_size is {hidden}")
        return shape[axis]

    def alike(*sizes: tuple[str, int]) -> int:
        (first, size), *others = sizes
        wrong.extend(
            f"{name} has size {other}, {first} has {size}"
            for name, other in others
            if other != size
        )
        return size

    d_query = d_kv = ffn = 0
    query, key, value, output = _ATTENTION
    gate, up, down = _MLP
    if f"{_FUSED_ATTENTION}.weight" in layer:
        d_query = side(output, 1)
        d_kv, odd = divmod(side(_FUSED_ATTENTION, 0) - d_query, 2)
        if odd or d_kv < 0:
            wrong.append(f"{_FUSED_ATTENTION} has no room for as many keys as values")
    elif any(f"{name}.weight" in layer for name in _ATTENTION):
        d_query = alike((query, side(query, 0)), (output, side(output, 1)))
        d_kv = alike((key, side(key, 0)), (value, side(value, 0)))
    if f"{_FUSED_MLP}.weight" in layer:
        ffn = alike((down, side(down, 1)), (f"half of {_FUSED_MLP}", side(_FUSED_MLP, 0) // 2))
    elif any(f"{name}.weight" in layer for name in _MLP):
        ffn = alike((gate, side(gate, 0)), (up, side(up, 0)), (down, side(down, 1)))
    if (d_query or d_kv) and not head_dim:
        wrong.append("config.json gives no head_dim")
    heads = [0, 0]
    for slot, rows in enumerate((d_query, d_kv)):
        if head_dim:
            heads[slot] = rows // head_dim
            if rows % head_dim:
                wrong.append(f"{rows} rows are not whole heads of head_dim {head_dim}")
    query_heads, kv_heads = heads
    if groups is not None:
        whole = isinstance(groups, list) and all(type(g) is int and g > 0 for g in groups)
        if not whole or len(groups) != kv_heads or sum(groups) != query_heads:
            wrong.append(
                f"config.json says query_groups {groups!r}; the tensors hold {query_heads} query "
                f"heads on {kv_heads} KV heads"
            )
            groups = None
    elif query_heads % kv_heads if kv_heads else query_heads:
        wrong.append(f"{query_heads} query heads do not share {kv_heads} KV heads evenly")
    shared = None if groups is None else tuple(groups)
    return LayerShape(query_heads, kv_heads, head_dim, ffn, shared), wrong
