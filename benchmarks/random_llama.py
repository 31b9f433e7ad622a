# SPDX-License-Identifier: Apache-2.0
"""A part of the benchmarks: a Llama of random weights, and the same with half of its units."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from prunec.compiler.model.facts import Facts, facts_from_config
from prunec.compiler.model.layout import LayerSpec, Layout
from prunec.exporters.hf import model_config

HALF = LayerSpec(query_heads=6, kv_heads=2, head_dim=64, ffn=1024)


def llama(layers: int) -> Facts:
    """12 query heads on 4 KV heads, hidden size 768: 101 million parameters in 12 layers."""
    config = LlamaConfig(
        vocab_size=16384,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=layers,
        num_attention_heads=12,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=4096,
    )
    return facts_from_config(config.to_dict())


def write_checkpoint(folder: Path, facts: Facts, layout: Layout, dtype: torch.dtype) -> None:
    """A uniform layout as transformers saves it, without a tokenizer."""
    said = model_config(facts, layout, "uniform", dtype)
    config = AutoConfig.for_model(said.pop("model_type"), **said)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
