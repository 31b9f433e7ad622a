# SPDX-License-Identifier: Apache-2.0
"""A transformers model made ready for tracing: without weights, its cache an input and an output,
its attention in ONNX's words."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import sdpa_mask

#: transformers' name for the attention below.
ATTENTION = "prunec_onnx"


def weightless(config: Any, dtype: torch.dtype, attention: str) -> Any:
    """A model with all parameters on the meta device; what it computes itself is there.

    `attention` is one of transformers' implementations of it.
    """
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    # Patched for as long as the model is built: torch has no hook for what a module registers.
    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign, assignment]
    try:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
    model.tie_weights()
    return model.eval()


def make_fake(model: nn.Module, mode: FakeTensorMode) -> None:
    """Gives a model tensors that have a shape and a device, but no storage.

    Parameters that were shared stay shared.
    """
    fakes: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = mode.from_tensor(buffer)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if parameter not in fakes:
                    with mode:
                        empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                    fakes[parameter] = nn.Parameter(empty, requires_grad=False)
                module._parameters[name] = fakes[parameter]


class Cached(nn.Module):
    """A causal language model with its KV cache as plain inputs and outputs."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        # Without a config, so that layers with a sliding window keep all of their past too: the
        # mask is what hides it, and all layers have one length.
        cache = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        output = self.decoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        present = [states for layer in cache.layers for states in (layer.keys, layer.values)]
        return output.logits, *cast("list[Tensor]", present)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """[batch, heads, …, head_dim] each → [batch, sequence, query heads, head_dim]."""
    attended = torch.onnx.ops.attention(
        query, key, value, attention_mask, scale=scaling, softcap=softcap or 0.0
    )[0]
    return attended.transpose(1, 2), None


def _mask(
    *, q_length: int, kv_length: int, q_offset: int, attention_mask: Tensor, **kwargs: Any
) -> Tensor:
    """[batch, 1, sequence, total], true where a query sees a key.

    A query always sees itself: otherwise those of left padding would see nothing, which runtimes
    answer differently, with NaN among others.
    """
    kwargs["allow_is_causal_skip"] = False
    seen = sdpa_mask(q_length=q_length, kv_length=kv_length, q_offset=q_offset, **kwargs)
    itself = torch.arange(q_length)[:, None] + q_offset == torch.arange(kv_length)
    mask: Tensor = seen & attention_mask[:, None, None, :] | itself
    return mask


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, _mask)
