# SPDX-License-Identifier: Apache-2.0
"""Llama 1, 2 and 3.x."""

from __future__ import annotations

from prunec.compiler.model.families.family import Family

LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    title="Llama",
    biases={
        "attention_bias": (
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
        ),
        "mlp_bias": ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    },
    heads_divide_hidden=True,
)
