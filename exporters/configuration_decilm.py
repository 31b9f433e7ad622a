# SPDX-License-Identifier: Apache-2.0
"""The config that vLLM's DeciLMForCausalLM reads, as transformers loads it.

Stands alone (transformers only) beside exported weights, for `vllm serve … --trust-remote-code`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from transformers import PretrainedConfig


class DeciLMConfig(PretrainedConfig):
    """Model-wide sizes, and a block for each layer: which sublayers it has and how large they are.

    Every layer with attention has `num_attention_heads` query heads, `n_heads_in_group` of them on
    each KV head. `block_configs` are objects, since their attributes are what is read.
    """

    model_type = "nemotron-nas"
    keys_to_ignore_at_inference = ("past_key_values",)

    def __init__(self, block_configs: list[dict[str, Any]] | None = None, **config: Any) -> None:
        self.block_configs = [
            SimpleNamespace(**{name: SimpleNamespace(**part) for name, part in block.items()})
            for block in block_configs or []
        ]
        super().__init__(**config)

    def shapes(self) -> list[tuple[int, int, int]]:
        """Query heads, KV heads and MLP width of every layer; zeros for what is absent."""
        found = []
        for block in self.block_configs:
            heads = 0 if block.attention.no_op else self.num_attention_heads
            kv_heads = heads // block.attention.n_heads_in_group if heads else 0
            found.append((heads, kv_heads, block.ffn.intermediate_size or 0))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as config.json has it."""
        blocks = [
            {name: vars(part) for name, part in vars(block).items()} for block in self.block_configs
        ]
        return {**super().to_dict(), "block_configs": blocks}
