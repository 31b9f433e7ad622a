# SPDX-License-Identifier: Apache-2.0
"""What onnxruntime-genai reads beside a graph: genai_config.json, and one chat template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunec.compiler.model.layout import Layout
from prunec.compiler.model.special_ids import token_ids

FILE = "genai_config.json"


def genai_config(
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    special: Mapping[str, int],
    layout: Layout,
    graph: str,
) -> dict[str, Any]:
    """What onnxruntime-genai asks of a model, from its config.json and generation_config.json.

    `special` are the ids of the tokenizer's `eos_token` and the like, for those that neither file
    names; a token that nobody names is left out. It makes the KV cache from the graph's own inputs,
    whose number of heads differs from layer to layer; the sizes here are the largest.
    """

    def setting(name: str, default: Any = None) -> Any:
        value = generation.get(name)
        value = config.get(name) if value is None else value
        return default if value is None else value

    def tokens(name: str) -> list[int]:
        for value in (generation.get(f"{name}_id"), config.get(f"{name}_id"), special.get(name)):
            if known := [token for token in token_ids(value) if token < config["vocab_size"]]:
                return known
        return []

    ends = tokens("eos_token")
    single = {"bos_token_id": tokens("bos_token"), "pad_token_id": tokens("pad_token") or ends}
    length = config["max_position_embeddings"]
    return {
        "model": {
            "type": "decoder",  # any decoder, run as the graph says
            **{name: found[0] for name, found in single.items() if found},
            **({"eos_token_id": ends if len(ends) > 1 else ends[0]} if ends else {}),
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


def one_chat_template(tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer_config.json with its default chat template alone, if it has a list of them:
    onnxruntime-genai opens no folder with several."""
    templates = tokenizer.get("chat_template")
    if not isinstance(templates, list):
        return dict(tokenizer)
    by_name = {each.get("name"): each.get("template") for each in templates if each}
    kept = {key: value for key, value in tokenizer.items() if key != "chat_template"}
    return kept | ({"chat_template": by_name["default"]} if "default" in by_name else {})
