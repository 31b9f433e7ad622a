# SPDX-License-Identifier: Apache-2.0
"""Qwen3, dense: every query and key is normed, head by head, with weights that heads share."""

from __future__ import annotations

from prunec.compiler.model.families.family import Family

QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    title="Qwen3",
    head_norms=("self_attn.q_norm.weight", "self_attn.k_norm.weight"),
    biases={
        "attention_bias": (
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
        ),
    },
    defaults={"num_key_value_heads": 32, "head_dim": 128},
)
