# SPDX-License-Identifier: Apache-2.0
"""Mistral 7B, Nemo and their kin: Llama without biases, with a sliding window in the first."""

from __future__ import annotations

from prunec.compiler.model.families.family import Family

MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    title="Mistral",
    defaults={"num_key_value_heads": 8},
)
