# SPDX-License-Identifier: Apache-2.0
"""Llama whose decoder layers each have their own shape: fewer heads, a narrower MLP, or neither.

This file stands alone (torch and transformers only): it lies beside exported weights, for
`from_pretrained(..., trust_remote_code=True)`. Where prunec is installed, `import
prunec.exporters.hf` registers these classes, and no remote code is needed.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    Cache,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

_SIZES = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
_GROUPS = "query_groups"


@strict
class PrunecLlamaConfig(LlamaConfig):
    """LlamaConfig with the sizes of every layer in `layer_shapes`.

    One entry a layer, with `num_attention_heads`, `num_key_value_heads` and `intermediate_size`:
    zero heads mean no attention, a zero size no MLP. Where the KV heads of a layer serve different
    numbers of query heads, its entry lists these as `query_groups`. The model-wide values are
    upper bounds over the layers. Without `layer_shapes` all layers have the model-wide sizes.

    transformers' `per_layer_config` is not used: with it, reading a model-wide size raises, which
    several rotary embeddings (yarn, dynamic, longrope) and other callers do.
    """

    model_type = "prunec_llama"

    layer_shapes: list[dict[str, int | list[int]]] | None = None

    def shape_of(self, layer: int) -> tuple[int, int, int]:
        """Query heads, KV heads and MLP width of one layer."""
        if self.layer_shapes is None:
            return self.num_attention_heads, self.num_key_value_heads, self.intermediate_size
        query_heads, kv_heads, ffn = (self.layer_shapes[layer][size] for size in _SIZES)
        return query_heads, kv_heads, ffn  # type: ignore[return-value]

    def groups_of(self, layer: int) -> list[int] | None:
        """Query heads of each of a layer's KV heads; None where all have as many."""
        shape = self.layer_shapes[layer] if self.layer_shapes else {}
        return shape.get(_GROUPS)  # type: ignore[return-value]

    def validate_architecture(self) -> None:
        """ValueError unless every layer has a shape that can be built. Called by `@strict`.

        Replaces Llama's own check, that the heads divide the hidden size: they need not, since
        head_dim is explicit.
        """
        shapes = self.layer_shapes
        if shapes is not None and len(shapes) != self.num_hidden_layers:
            raise ValueError(
                f"layer_shapes has {len(shapes)} entries for {self.num_hidden_layers} layers"
            )
        for layer, shape in enumerate(shapes or ()):
            counts = [shape.get(size) for size in _SIZES]
            whole = all(isinstance(count, int) and count >= 0 for count in counts)
            if not whole or not {*shape} <= {*_SIZES, _GROUPS}:
                raise ValueError(
                    f"layer_shapes[{layer}] is {shape}; it must give {_SIZES}, none negative"
                )
            query_heads, kv_heads, _ = self.shape_of(layer)
            groups = self.groups_of(layer)
            if groups is not None:
                if len(groups) != kv_heads or sum(groups) != query_heads or min(groups) < 1:
                    raise ValueError(
                        f"layer_shapes[{layer}] has query_groups {groups} for {query_heads} query "
                        f"heads on {kv_heads} KV heads"
                    )
            elif query_heads % kv_heads if kv_heads else query_heads:
                raise ValueError(
                    f"layer_shapes[{layer}] has {query_heads} query heads on {kv_heads} KV heads"
                )


class _SharedOut:
    """In the place of a KV cache: keys and values are kept once for every KV head, and handed out
    once for every query head. Without a cache it only does the latter."""

    def __init__(self, cache: Cache | None, query_groups: Sequence[int]) -> None:
        self._cache = cache
        self._query_groups = query_groups

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, ...]:
        """[batch, KV heads, new, head_dim] → [batch, query heads, all, head_dim], twice."""
        if self._cache is not None:
            keys, values = self._cache.update(keys, values, layer_idx, *args, **kwargs)
        counts = torch.tensor(self._query_groups, device=keys.device)
        return tuple(
            states.repeat_interleave(counts, dim=1, output_size=sum(self._query_groups))
            for states in (keys, values)
        )


class PrunecLlamaAttention(LlamaAttention):
    """Llama's attention with KV heads that serve different numbers of query heads."""

    def __init__(self, config: LlamaConfig, layer_idx: int, query_groups: Sequence[int]) -> None:
        super().__init__(config, layer_idx)
        self.query_groups = tuple(query_groups)
        self.num_key_value_groups = 1  # kernels get a key and a value for every query head

    def forward(
        self, hidden_states: Tensor, past_key_values: Cache | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        shared: Any = _SharedOut(past_key_values, self.query_groups)
        attended: tuple[Tensor, Tensor | None] = super().forward(
            hidden_states, past_key_values=shared, **kwargs
        )
        return attended


class PrunecLlamaDecoderLayer(GradientCheckpointingLayer):
    """A Llama decoder layer whose attention, MLP or both may be absent, each with its norm."""

    def __init__(
        self,
        config: LlamaConfig,
        layer_idx: int,
        *,
        query_heads: int,
        kv_heads: int,
        ffn: int,
        query_groups: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        shaped = copy.copy(config)
        shaped.num_attention_heads = query_heads
        shaped.num_key_value_heads = kv_heads
        shaped.intermediate_size = ffn
        self.self_attn = self.mlp = None
        if kv_heads:
            self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            self.self_attn = (
                PrunecLlamaAttention(shaped, layer_idx, query_groups)
                if query_groups
                else LlamaAttention(shaped, layer_idx)
            )
            # The model's own config, so that a later change of attention backend reaches it.
            self.self_attn.config = config
        if ffn:
            self.post_attention_layernorm = LlamaRMSNorm(
                config.hidden_size, eps=config.rms_norm_eps
            )
            self.mlp = LlamaMLP(shaped)
            self.mlp.config = config

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """[batch, sequence, hidden] → the same shape. `kwargs` are what LlamaAttention takes."""
        if self.self_attn is not None:
            attended, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
            hidden_states = hidden_states + attended
        if self.mlp is not None:
            hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states


def shaped_decoder_layer(
    config: LlamaConfig,
    layer_idx: int,
    *,
    query_heads: int,
    kv_heads: int,
    ffn: int,
    query_groups: Sequence[int] | None = None,
) -> PrunecLlamaDecoderLayer:
    """One decoder layer of a given shape; only the sizes come from the arguments, not `config`.

    `layer_idx` is the layer's slot in a KV cache: its rank among the layers that have attention.
    Zero heads leave out the attention and its norm, zero `ffn` the MLP and its norm. With
    `query_groups`, the KV heads serve so many query heads each.
    """
    return PrunecLlamaDecoderLayer(
        config,
        layer_idx,
        query_heads=query_heads,
        kv_heads=kv_heads,
        ffn=ffn,
        query_groups=query_groups,
    )


class PrunecLlamaModel(LlamaModel):
    """LlamaModel with each decoder layer in its own shape."""

    config_class = PrunecLlamaConfig
    _no_split_modules: ClassVar = ["PrunecLlamaDecoderLayer"]
    _can_record_outputs: ClassVar = {
        "hidden_states": PrunecLlamaDecoderLayer,
        "attentions": LlamaAttention,
    }

    def __init__(self, config: PrunecLlamaConfig) -> None:
        # Not LlamaModel's: it would allocate all layers at the model-wide sizes.
        super(LlamaModel, self).__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        layers = []
        cache_slot = 0  # a cache takes its length from slot 0, which must be a layer with attention
        for index in range(config.num_hidden_layers):
            query_heads, kv_heads, ffn = config.shape_of(index)
            layers.append(
                shaped_decoder_layer(
                    config,
                    cache_slot,
                    query_heads=query_heads,
                    kv_heads=kv_heads,
                    ffn=ffn,
                    query_groups=config.groups_of(index),
                )
            )
            cache_slot += kv_heads > 0
        self.layers = nn.ModuleList(layers)
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()


class PrunecLlamaForCausalLM(LlamaForCausalLM):
    """PrunecLlamaModel under a language-model head."""

    config_class = PrunecLlamaConfig
    _no_split_modules: ClassVar = ["PrunecLlamaDecoderLayer"]

    def __init__(self, config: PrunecLlamaConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)
        self.model = PrunecLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _get_static_cache_init_shape(self) -> None:
        # Asked by generate() for one KV shape up front; ours differ, and are made when first used.
        return None


# save_pretrained then takes this file along, so that a saved copy loads as the original does.
PrunecLlamaConfig.register_for_auto_class()


def register() -> None:
    """Make transformers' Auto classes know `prunec_llama`; may be called any number of times."""
    AutoConfig.register(PrunecLlamaConfig.model_type, PrunecLlamaConfig, exist_ok=True)
    AutoModel.register(PrunecLlamaConfig, PrunecLlamaModel, exist_ok=True)
    AutoModelForCausalLM.register(PrunecLlamaConfig, PrunecLlamaForCausalLM, exist_ok=True)
