# SPDX-License-Identifier: Apache-2.0
"""Gemma 3, text models: Gemma 2 with normed queries and keys in place of capped scores."""

from __future__ import annotations

from dataclasses import replace

from prunec.compiler.model.families.gemma2 import GEMMA2

GEMMA3 = replace(
    GEMMA2,
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    title="Gemma 3",
    head_norms=("self_attn.q_norm.weight", "self_attn.k_norm.weight"),
)
