# SPDX-License-Identifier: Apache-2.0
"""genai_config.json: how onnxruntime-genai runs the graph beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunec.compiler.model.layout import Layout

FILE = "genai_config.json"


def genai_config(
    config: Mapping[str, Any], generation: Mapping[str, Any], layout: Layout, graph: str
) -> dict[str, Any]:
    """What onnxruntime-genai asks of a model, from its config.json and generation_config.json.

    It makes the KV cache from the graph's own inputs, whose number of heads differs from layer to
    layer; the sizes here are the largest.
    """

    def setting(name: str, default: Any = None) -> Any:
        value = generation.get(name)
        value = config.get(name) if value is None else value
        return default if value is None else value

    end = setting("eos_token_id", 0)
    first_end = end[0] if isinstance(end, list) else end
    length = config.get("max_position_embeddings", 2048)
    return {
        "model": {
            "type": "decoder",  # any decoder, run as the graph says
            "bos_token_id": setting("bos_token_id", first_end),
            "eos_token_id": end,
            "pad_token_id": setting("pad_token_id", first_end),
            "vocab_size": config["vocab_size"],
            "context_length": length,
            "decoder": {
                "filename": graph,
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "hidden_size": config["hidden_size"],
                "head_size": config["head_dim"],
                "num_attention_heads": config["num_attention_heads"],
                "num_key_value_heads": config["num_key_value_heads"],
                "num_hidden_layers": len(layout),
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "position_ids": "position_ids",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "max_length": length,
            "past_present_share_buffer": False,  # the graph appends to its past
            "do_sample": setting("do_sample", False),
            "temperature": setting("temperature", 1.0),
            "top_k": setting("top_k", 50),
            "top_p": setting("top_p", 1.0),
            "repetition_penalty": setting("repetition_penalty", 1.0),
        },
    }
