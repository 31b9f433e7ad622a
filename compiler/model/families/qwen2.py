# SPDX-License-Identifier: Apache-2.0
"""Qwen2 and Qwen2.5: queries, keys and values have biases, outputs have none."""

from __future__ import annotations

from prunec.compiler.model.families.family import Family

QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    title="Qwen2",
    always_biased=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    defaults={"num_key_value_heads": 32},
)
