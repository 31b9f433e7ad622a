# SPDX-License-Identifier: Apache-2.0
"""Families of architectures: which tensors a decoder layer has and how they are coupled.

Nothing else in prunec knows a family's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunec.compiler.model.errors import ModelError


@dataclass(frozen=True)
class Family:
    """Names of a decoder's tensors, relative to a layer (`model.layers.{i}.`) or to the model.

    Coupling is the same for all: a query head is a block of rows of `query` and of columns of
    `output`, a KV head a block of rows of `key` and `value`, a neuron a row of `gate` and `up`
    and a column of `down`.
    """

    model_type: str
    architecture: str
    layer_prefix: str = "model.layers.{}."
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    output: str = "self_attn.o_proj"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    attention_norm: str = "input_layernorm.weight"
    mlp_norm: str = "post_attention_layernorm.weight"
    embedding: str = "model.embed_tokens.weight"
    final_norm: str = "model.norm.weight"
    head: str = "lm_head.weight"

    def in_layer(self, index: int, name: str) -> str:
        """The full name of a layer's tensor."""
        return self.layer_prefix.format(index) + name


LLAMA = Family(model_type="llama", architecture="LlamaForCausalLM")

FAMILIES: Mapping[str, Family] = {family.model_type: family for family in (LLAMA,)}


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config.json; ModelError for one that prunec cannot prune."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ModelError(
            f"model type {model_type!r} is not supported",
            hint=f"supported: {', '.join(sorted(FAMILIES))}",
        )
    return FAMILIES[model_type]
