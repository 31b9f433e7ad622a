# SPDX-License-Identifier: Apache-2.0
"""vLLM's decoder layers at shapes of their own: one line of a table for every family."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNorm
from vllm.model_executor.models.gemma2 import Gemma2DecoderLayer
from vllm.model_executor.models.gemma3 import Gemma3DecoderLayer
from vllm.model_executor.models.llama import LlamaDecoderLayer
from vllm.model_executor.models.mistral import MistralDecoderLayer
from vllm.model_executor.models.qwen3 import Qwen3DecoderLayer
from vllm.model_executor.models.utils import extract_layer_index

from prunec.exporters.vllm_rules import splits

Build = Callable[[VllmConfig, Any, str], Any]

_PRE_NORMS = (("input_layernorm", None), ("post_attention_layernorm", None))
_SANDWICH = (
    ("input_layernorm", "post_attention_layernorm"),
    ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
)


@dataclass(frozen=True)
class Family:
    """What vLLM has for a family.

    build: its decoder layer, from a config in which every size is this layer's
    norms: names of the norms before and behind attention, then of those of the MLP
    norm: the class of the last norm
    scaled_embedding: whether embeddings are multiplied by the root of the hidden size
    """

    build: Build
    norms: tuple[tuple[str, str | None], tuple[str, str | None]] = _PRE_NORMS
    norm: type[nn.Module] = RMSNorm
    scaled_embedding: bool = False


def _llama(vllm_config: VllmConfig, config: Any, prefix: str) -> Any:
    return LlamaDecoderLayer(vllm_config, prefix, config)


def _mistral(vllm_config: VllmConfig, config: Any, prefix: str) -> Any:
    return MistralDecoderLayer(vllm_config, prefix, config)


def _qwen2(vllm_config: VllmConfig, config: Any, prefix: str) -> Any:
    # vLLM's own Qwen2 layer takes the hidden size by the query heads for the width of a head.
    config.attention_bias, config.qkv_bias = False, True
    return LlamaDecoderLayer(vllm_config, prefix, config)


def _qwen3(vllm_config: VllmConfig, config: Any, prefix: str) -> Any:
    sliding = config.layer_types[extract_layer_index(prefix)] == "sliding_attention"
    return Qwen3DecoderLayer(
        config,
        vllm_config.cache_config,
        vllm_config.quant_config,
        prefix,
        config.sliding_window if sliding else None,
    )


def _gemma2(vllm_config: VllmConfig, config: Any, prefix: str) -> Any:
    return Gemma2DecoderLayer(config, vllm_config.cache_config, vllm_config.quant_config, prefix)


def _gemma3(vllm_config: VllmConfig, config: Any, prefix: str) -> Any:
    return Gemma3DecoderLayer(config, vllm_config.cache_config, vllm_config.quant_config, prefix)


LLAMA = PHI3 = Family(_llama)
MISTRAL = Family(_mistral)
QWEN2 = Family(_qwen2)
QWEN3 = Family(_qwen3)
GEMMA2 = Family(_gemma2, _SANDWICH, GemmaRMSNorm, scaled_embedding=True)
GEMMA3 = Family(_gemma3, _SANDWICH, GemmaRMSNorm, scaled_embedding=True)


class ShapedLayer(nn.Module):
    """The parts of vLLM's decoder layer that this layer has, under their own names.

    Raises ValueError for a shape that the tensor-parallel ranks cannot share, or that has KV heads
    with different numbers of query heads.
    """

    def __init__(self, family: Family, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        index = extract_layer_index(prefix)
        ranks = get_tensor_model_parallel_world_size()
        query_heads, kv_heads, ffn = config.shape_of(index)
        if config.groups_of(index):
            raise ValueError(
                f"layer {index} has KV heads that serve different numbers of query heads, which "
                "vLLM's attention cannot; open this model with transformers"
            )
        if not splits(ranks, query_heads, kv_heads, ffn):
            raise ValueError(
                f"layer {index} has {query_heads} query heads, {kv_heads} KV heads and {ffn} "
                f"neurons, which --tensor-parallel-size {ranks} cannot split evenly; prunec keeps "
                f"to it with export: [{{kind: vllm, tensor_parallel: {ranks}}}]"
            )
        shaped = copy.copy(config)
        # An absent sublayer is built at the least size that vLLM can build, and left behind.
        shaped.num_attention_heads = query_heads or ranks
        shaped.num_key_value_heads = kv_heads or ranks
        shaped.intermediate_size = ffn or ranks
        stock = family.build(vllm_config, shaped, prefix)
        self.norms_of_attention, self.norms_of_mlp = family.norms
        self.self_attn = self.mlp = None
        if kv_heads:
            self._take(stock, "self_attn", *self.norms_of_attention)
        else:
            _forget_kv_cache(vllm_config, f"{prefix}.self_attn.")
        if ffn:
            self._take(stock, "mlp", *self.norms_of_mlp)

    def _take(self, stock: nn.Module, *names: str | None) -> None:
        for name in filter(None, names):
            setattr(self, name, stock.get_submodule(name))

    def forward(
        self, positions: Tensor, hidden: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """hidden, residual: [tokens, hidden size], of which the sum is the stream.

        The residual is None until a layer has something to do.
        """
        if self.self_attn is not None:
            before, behind = self.norms_of_attention
            hidden, residual = normed(getattr(self, before), hidden, residual)
            hidden = self.self_attn(positions=positions, hidden_states=hidden)
            hidden = hidden if behind is None else getattr(self, behind)(hidden)
        if self.mlp is not None:
            before, behind = self.norms_of_mlp
            hidden, residual = normed(getattr(self, before), hidden, residual)
            hidden = self.mlp(hidden)
            hidden = hidden if behind is None else getattr(self, behind)(hidden)
        return hidden, residual


def normed(norm: nn.Module, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """The normed stream, and the stream."""
    if residual is None:
        return norm(hidden), hidden
    both: tuple[Tensor, Tensor] = norm(hidden, residual)
    return both


def _forget_kv_cache(vllm_config: VllmConfig, prefix: str) -> None:
    """No cache for an attention that was left behind: it has registered itself for one."""
    context = vllm_config.compilation_config.static_forward_context
    for name in [name for name in context if name.startswith(prefix)]:
        del context[name]
