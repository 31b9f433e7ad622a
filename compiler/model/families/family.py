# SPDX-License-Identifier: Apache-2.0
"""What a family of architectures is: which tensors a decoder layer has and how they are coupled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

#: What the rows of a projection are: of query heads, of KV heads (keys or values), of neurons.
Rows = Literal["query", "key", "value", "gate", "up"]


@dataclass(frozen=True)
class Family:
    """Names of a decoder's tensors, relative to a layer (`model.layers.{i}.`) or to the model.

    A query head is a block of rows of what computes queries and of columns of `output`, a KV head
    a block of rows of what computes keys and values, a neuron a row of gate and up and a column of
    `down`. The defaults are those of most families.

    attention_inputs, mlp_inputs: projections whose rows are units, and what these rows are, from
        the first to the last: several kinds where projections are fused
    attention_norms, mlp_norms: norms of the hidden size that live and die with their sublayer,
        before it or, `ends_in_norm`, behind it too
    head_norms: norms of one head's size, shared by all heads of a layer
    layer_norms: norms over all query or all KV heads of a layer at once
    heads_are_units: False where a head cannot go without changing the others; attention then stays
        whole or goes whole
    biases: config keys that give projections a bias; `always_biased`: projections that have one
    defaults: what transformers takes for keys that config.json leaves out
    heads_divide_hidden: whether the stock config insists that query heads divide the hidden size
    rope_counts_heads: whether the stock config holds long rope factors against the number of heads
    rope_types: the kinds of rotary embeddings that the stock class computes
    rotates_parts: whether it rotates a part of each head where the config says so
    """

    model_type: str
    architecture: str
    title: str
    attention_inputs: Mapping[str, tuple[Rows, ...]] = field(
        default_factory=lambda: {
            "self_attn.q_proj": ("query",),
            "self_attn.k_proj": ("key",),
            "self_attn.v_proj": ("value",),
        }
    )
    output: str = "self_attn.o_proj"
    mlp_inputs: Mapping[str, tuple[Rows, ...]] = field(
        default_factory=lambda: {"mlp.gate_proj": ("gate",), "mlp.up_proj": ("up",)}
    )
    down: str = "mlp.down_proj"
    attention_norms: tuple[str, ...] = ("input_layernorm.weight",)
    mlp_norms: tuple[str, ...] = ("post_attention_layernorm.weight",)
    head_norms: tuple[str, ...] = ()
    layer_norms: Mapping[str, Rows] = field(default_factory=dict)
    ends_in_norm: bool = False
    heads_are_units: bool = True
    biases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    always_biased: tuple[str, ...] = ()
    defaults: Mapping[str, object] = field(default_factory=dict)
    heads_divide_hidden: bool = False
    rope_counts_heads: bool = False
    rope_types: tuple[str, ...] = (
        "default",
        "linear",
        "dynamic",
        "yarn",
        "longrope",
        "llama3",
        "proportional",
    )
    rotates_parts: bool = False
    layer_prefix: str = "model.layers.{}."
    embedding: str = "model.embed_tokens.weight"
    final_norm: str = "model.norm.weight"
    head: str = "lm_head.weight"

    def in_layer(self, index: int, name: str) -> str:
        """The full name of a layer's tensor."""
        return self.layer_prefix.format(index) + name

    @property
    def inputs(self) -> Mapping[str, tuple[Rows, ...]]:
        """All projections whose rows are units."""
        return {**self.attention_inputs, **self.mlp_inputs}

    @property
    def attention_projections(self) -> tuple[str, ...]:
        return (*self.attention_inputs, self.output)

    @property
    def mlp_projections(self) -> tuple[str, ...]:
        return (*self.mlp_inputs, self.down)
