# SPDX-License-Identifier: Apache-2.0
"""Gemma 2: a norm before and behind every sublayer, capped scores, every other layer sliding."""

from __future__ import annotations

from prunec.compiler.model.families.family import Family

GEMMA2 = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    title="Gemma 2",
    attention_norms=("input_layernorm.weight", "post_attention_layernorm.weight"),
    mlp_norms=("pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight"),
    ends_in_norm=True,
    biases={
        "attention_bias": (
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
        ),
    },
    defaults={"num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True},
    heads_divide_hidden=True,
)
