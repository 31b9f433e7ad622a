# SPDX-License-Identifier: Apache-2.0
"""Phi-3, 3.5 and 4: queries, keys and values in one projection, gate and up in another."""

from __future__ import annotations

from prunec.compiler.model.families.family import Family

PHI3 = Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    title="Phi-3",
    attention_inputs={"self_attn.qkv_proj": ("query", "key", "value")},
    mlp_inputs={"mlp.gate_up_proj": ("gate", "up")},
    rope_counts_heads=True,
    rope_types=("default", "longrope", "yarn"),  # yarn is an older word for longrope here
    rotates_parts=True,
)
