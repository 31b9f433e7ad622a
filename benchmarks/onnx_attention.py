# SPDX-License-Identifier: Apache-2.0
"""Ways to write attention in an ONNX graph, for `onnx_decode.py --attention`: each swaps the
exporter's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from prunec.exporters import onnx_decoder, onnx_graph
from prunec.exporters.onnx_decoder import ATTENTION, Cached


def _operators(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **kwargs: Any
) -> tuple[Tensor, None]:
    """Two products and a softmax, keys and values repeated for the query heads that share them."""
    group = query.shape[1] // key.shape[1]
    attended = torch.nn.functional.scaled_dot_product_attention(
        query,
        key.repeat_interleave(group, 1),
        value.repeat_interleave(group, 1),
        mask,
        scale=kwargs["scaling"],
    )
    return attended.transpose(1, 2), None


class _Handed:
    """In the place of a cache: leaves appending to the past to the attention operator."""

    is_compileable = False

    def __init__(self, past: list[Tensor], mask: Tensor) -> None:
        self.past, self.present = past, dict[int, list[Tensor]]()
        total = mask.shape[1]
        self.lengths = torch.full((mask.shape[0],), total - 1, dtype=torch.int32)
        self.total = torch.scalar_tensor(total, dtype=torch.int32)

    def update(self, key: Tensor, value: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        return key, value

    def get_seq_length(self, layer: int = 0) -> int:
        return self.past[0].shape[2]

    get_query_offset = get_seq_length

    def get_mask_sizes(self, new: int, layer: int) -> tuple[int, int]:
        return self.past[0].shape[2] + new, 0


class _Grouped(Cached):
    """The model with GroupQueryAttention, which takes past and new keys apart."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        cache = _Handed(past, attention_mask)

        def attend(
            module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **kwargs: Any
        ) -> tuple[Tensor, None]:
            place, (batch, heads, new, head_dim) = module.layer_idx, query.shape
            bias = torch.where(mask, 0.0, torch.finfo(query.dtype).min)
            grown = (batch, key.shape[1], cache.past[0].shape[2] + new, head_dim)
            output, *present = torch.onnx.ops.symbolic_multi_out(
                "com.microsoft::GroupQueryAttention",
                [
                    *(each.transpose(1, 2).reshape(batch, new, -1) for each in (query, key, value)),
                    *past[2 * place : 2 * place + 2],
                    cache.lengths,
                    cache.total,
                    *[None] * 3,
                    bias,
                ],
                {"num_heads": heads, "kv_num_heads": key.shape[1], "scale": kwargs["scaling"]},
                dtypes=[query.dtype] * 3,
                shapes=[(batch, new, heads * head_dim), grown, grown],
                version=1,
            )
            cache.present[place] = present
            return output.reshape(batch, new, heads, head_dim), None

        AttentionInterface.register(ATTENTION, attend)
        given = {"attention_mask": attention_mask, "position_ids": position_ids}
        output = self.decoder(input_ids=input_ids, past_key_values=cache, use_cache=True, **given)
        return output.logits, *(each for _, pair in sorted(cache.present.items()) for each in pair)


@contextmanager
def _swapped(attend: Any, model: type[Cached]) -> Iterator[None]:
    AttentionInterface.register(ATTENTION, attend)
    with mock.patch.object(onnx_graph, "Cached", model):
        yield
    AttentionInterface.register(ATTENTION, onnx_decoder._attend)


WAYS: Mapping[str, Callable[[], AbstractContextManager[None]]] = {
    "Attention": nullcontext,
    "operators": lambda: _swapped(_operators, Cached),
    "GroupQueryAttention": lambda: _swapped(None, _Grouped),
}
