# SPDX-License-Identifier: Apache-2.0
"""OLMo 2: norms behind the sublayers, none before.

Queries and keys are normed over all heads of a layer at once, so that no head can go without
changing the others.
"""

from __future__ import annotations

from prunec.compiler.model.families.family import Family

OLMO2 = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    title="OLMo 2",
    attention_norms=("post_attention_layernorm.weight",),
    mlp_norms=("post_feedforward_layernorm.weight",),
    layer_norms={"self_attn.q_norm.weight": "query", "self_attn.k_norm.weight": "key"},
    ends_in_norm=True,
    heads_are_units=False,
    biases={
        "attention_bias": (
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
        ),
    },
)
