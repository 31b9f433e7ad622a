# SPDX-License-Identifier: Apache-2.0
"""What a folder for vLLM can express, known before a weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from prunec.compiler.model.facts import Facts
from prunec.exporters import hf_rules
from prunec.exporters.hf_rules import LayoutKind

Dialect = Literal["plugin", "decilm"]

#: Architectures that the plugin adds to vLLM, by the dense model's model_type.
PLUGIN_ARCHITECTURES: Mapping[str, str] = {
    "llama": "PrunecLlamaForCausalLM",
    "mistral": "PrunecMistralForCausalLM",
    "qwen2": "PrunecQwen2ForCausalLM",
    "qwen3": "PrunecQwen3ForCausalLM",
    "phi3": "PrunecPhi3ForCausalLM",
    "gemma2": "PrunecGemma2ForCausalLM",
    "gemma3_text": "PrunecGemma3ForCausalLM",
}

#: Dense models that vLLM's DeciLM computes: what its config says of each on top of Llama's.
DECILM_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"attention_bias": False, "qkv_bias": True},
}

#: The key of an MLP's activation, and the only one that vLLM's layers compute; elsewhere any is.
_ACTIVATIONS: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "phi3"), ("hidden_act", "silu")),
    "gemma2": ("hidden_activation", "gelu_pytorch_tanh"),
}


def attention_is_legal(
    facts: Facts,
    layout_kind: LayoutKind,
    query_heads: int,
    kv_heads: int,
    *,
    dialect: Dialect = "plugin",
    ranks: int = 1,
) -> bool:
    """Whether a layer may have these heads, in a dialect and split over tensor-parallel ranks.

    DeciLM has one number of query heads for all layers, of which every KV head of a layer serves
    as many: the dense model's at most, which the KV heads therefore have to divide.
    """
    if not hf_rules.attention_is_legal(facts, layout_kind, query_heads, kv_heads):
        return False
    if dialect == "decilm" and kv_heads and facts.query_heads % kv_heads:
        return False
    return splits(ranks, query_heads, kv_heads, 0)


def mlp_is_legal(layout_kind: LayoutKind, ffn: int, *, ranks: int = 1) -> bool:
    """Whether a layer may have an MLP of this width, split over tensor-parallel ranks."""
    return hf_rules.mlp_is_legal(layout_kind, ffn) and splits(ranks, 0, 0, ffn)


def splits(ranks: int, query_heads: int, kv_heads: int, ffn: int) -> bool:
    """Whether tensor-parallel ranks can share a layer of this shape evenly.

    As in vLLM's layers: every rank has as many query heads and neurons; KV heads are shared out
    evenly too, or each is held by as many ranks.
    """
    shared = not kv_heads or kv_heads % ranks == 0 or ranks % kv_heads == 0
    return shared and query_heads % ranks == 0 and ffn % ranks == 0


def limits(
    facts: Facts, layout_kind: LayoutKind, *, dialect: Dialect = "plugin", ranks: int = 1
) -> str | None:
    """Why no model of this kind can be written; None if one can."""
    model_type = facts.family.model_type
    if dialect == "decilm" and model_type not in DECILM_SETTINGS:
        return (
            f"dialect decilm cannot compute {model_type}; it can {', '.join(DECILM_SETTINGS)}; "
            "use dialect: plugin"
        )
    if layout_kind == "per_layer" and model_type not in PLUGIN_ARCHITECTURES:
        return (
            f"vLLM has no layers of its own for {model_type}, so that it cannot be served with "
            "layers of different shapes; use target.layout: uniform"
        )
    if model_type in _ACTIVATIONS:
        key, known = _ACTIVATIONS[model_type]
        if (given := facts.config.get(key, known)) != known:
            return (
                f"config.json has {key}: {repr(given)[:60]}, and vLLM's layers of {model_type} "
                f"compute {known} alone; export hf or onnx"
            )
    if not splits(ranks, facts.query_heads, facts.kv_heads, facts.ffn):
        return (
            f"tensor_parallel is {ranks}, which does not split even the dense model's "
            f"{facts.query_heads} query heads, {facts.kv_heads} KV heads and {facts.ffn:,} neurons "
            "a layer evenly; choose a divisor of them"
        )
    return None


# Of vLLM's stock classes, these read no head_dim: they divide the hidden size by query heads.
_IMPLICIT_HEAD_DIM = frozenset({"qwen2"})
# And these know no windows of single layers.
_WINDOWLESS = frozenset({"qwen2", "qwen3"})


def misread_by_stock(config: Mapping[str, Any]) -> str | None:
    """What vLLM's stock class gets wrong of a plain model with this config.json; None if nothing is
    known. Such a model is served by the plugin, whose class reads it as it is."""
    model_type, sizes = str(config.get("model_type")), ("num_attention_heads", "head_dim")
    heads, head_dim = (config.get(name) for name in sizes)
    rows = heads * head_dim if isinstance(heads, int) and isinstance(head_dim, int) else None
    if model_type in _IMPLICIT_HEAD_DIM and rows not in (None, config.get("hidden_size")):
        return (
            f"its class of {model_type} takes heads to be hidden_size / num_attention_heads wide, "
            f"and they are {head_dim}"
        )
    if model_type in _WINDOWLESS and config.get("use_sliding_window"):
        return f"its class of {model_type} knows no attention windows of single layers"
    return None


#: The model type of vLLM's DeciLM, which transformers does not have.
DECILM = "nemotron-nas"


def settle(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the recipe's settings change in the format's rules and in what writes it."""
    dialect, ranks = settings["dialect"], settings["tensor_parallel"]
    decilm = dialect == "decilm"
    return {
        "rules": f"vllm {dialect} {ranks}",
        "attention_is_legal": partial(attention_is_legal, dialect=dialect, ranks=ranks),
        "mlp_is_legal": partial(mlp_is_legal, ranks=ranks),
        "limits": partial(limits, dialect=dialect, ranks=ranks),
        "module": "prunec.exporters.vllm_decilm" if decilm else "prunec.exporters.vllm",
        # DeciLM's first layer starts the residual stream with its attention.
        "attended": frozenset({0} if decilm else ()),
        "opens_in_transformers": not decilm,
    }
