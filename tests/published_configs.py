# SPDX-License-Identifier: Apache-2.0
"""config.json of every family as its publisher ships it: the same keys, in small sizes.

Sizes, token ids and the lengths of rope factors are scaled down, all else is as published. Where a
publisher leaves `head_dim` out, so does the row: a head is then the hidden size over the dense
model's heads, which no pruned config says by itself.
"""

from __future__ import annotations

from typing import Any

_LAYERS = 5
#: Of 4 query heads on a hidden size of 64, where `head_dim` is left out.
_HALF_HEAD = 8
_OLD = {"torch_dtype": "bfloat16", "transformers_version": "4.43.1", "use_cache": True}
_IDS = {"bos_token_id": 1, "eos_token_id": 2}
_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": 4,
    "vocab_size": 300,
    "initializer_range": 0.02,
    "max_position_embeddings": 512,
}


def _llama(**keys: Any) -> dict[str, Any]:
    return {
        **_SIZES,
        **_IDS,
        **_OLD,
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "model_type": "llama",
        "num_key_value_heads": 2,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        **keys,
    }


_LLAMA_3: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "eos_token_id": [2, 7, 8],
    "mlp_bias": False,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 64,
        "rope_type": "llama3",
    },
    "rope_theta": 500_000.0,
}


def _mistral(**keys: Any) -> dict[str, Any]:
    return {
        **_SIZES,
        **_IDS,
        **_OLD,
        "architectures": ["MistralForCausalLM"],
        "hidden_act": "silu",
        "model_type": "mistral",
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
        **keys,
    }


def _qwen(model_type: str, architecture: str, **keys: Any) -> dict[str, Any]:
    return {
        **_SIZES,
        **_IDS,
        **_OLD,
        "architectures": [architecture],
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "max_window_layers": 2,
        "model_type": model_type,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        **keys,
    }


def _phi3(**keys: Any) -> dict[str, Any]:
    return {
        **_SIZES,
        **_IDS,
        **_OLD,
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_phi3.Phi3Config",
            "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
        },
        "embd_pdrop": 0.0,
        "hidden_act": "silu",
        "model_type": "phi3",
        "num_key_value_heads": 2,
        "original_max_position_embeddings": 64,
        "pad_token_id": 0,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
        **keys,
    }


def _longrope(pairs: int) -> dict[str, Any]:
    return {
        "long_factor": [1.0 + 0.5 * pair for pair in range(pairs)],
        "short_factor": [1.0 + 0.25 * pair for pair in range(pairs)],
        "type": "longrope",
    }


def _gemma(model_type: str, architecture: str, **keys: Any) -> dict[str, Any]:
    return {
        **_SIZES,
        **_OLD,
        "architectures": [architecture],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 2,
        "cache_implementation": "hybrid",
        "eos_token_id": [1, 7],
        "head_dim": 24,
        "hidden_activation": "gelu_pytorch_tanh",
        "model_type": model_type,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 24,
        "rms_norm_eps": 1e-6,
        "sliding_window": 12,
        **keys,
    }


def _today(config: dict[str, Any], *, rope: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """The form in which transformers 5 saves a config: `dtype`, `rope_parameters`."""
    older = {"torch_dtype", "rope_theta", "rope_scaling", "rope_local_base_freq", "auto_map"}
    kept = {key: value for key, value in config.items() if key not in older}
    new = {"dtype": "bfloat16", "rope_parameters": rope, "transformers_version": "5.2.0"}
    return {**kept, **new, **keys}


PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama 1": {
        key: value
        for key, value in _llama(
            max_sequence_length=512, pad_token_id=0, torch_dtype="float16"
        ).items()
        if key not in ("num_key_value_heads", "pretraining_tp", "rope_scaling")
    },
    "Llama 2": _llama(num_key_value_heads=4, torch_dtype="float16"),
    "Llama 3": _llama(attention_bias=False, attention_dropout=0.0, rope_theta=500_000.0),
    "Llama 3.1": _llama(**_LLAMA_3),
    "Llama 3.2": _llama(**_LLAMA_3, head_dim=16, tie_word_embeddings=True),
    "Llama 3.2, today": _today(
        _llama(**_LLAMA_3, head_dim=16, tie_word_embeddings=True),
        rope={**_LLAMA_3["rope_scaling"], "rope_theta": 500_000.0},
    ),
    "Mistral 0.1": _mistral(sliding_window=12),
    "Mistral 0.3": _mistral(attention_dropout=0.0, rope_theta=1e6, sliding_window=None),
    "Mistral Nemo": _mistral(
        attention_dropout=0.0, head_dim=24, rope_theta=1e6, sliding_window=None
    ),
    "Qwen2.5": _qwen("qwen2", "Qwen2ForCausalLM", sliding_window=512),
    "Qwen2.5, tied": _qwen(
        "qwen2", "Qwen2ForCausalLM", sliding_window=12, tie_word_embeddings=True
    ),
    "Qwen2.5, long texts": _qwen(
        "qwen2",
        "Qwen2ForCausalLM",
        rope_scaling={"factor": 4.0, "original_max_position_embeddings": 64, "type": "yarn"},
        sliding_window=512,
    ),
    "Qwen2.5, today": _today(
        _qwen("qwen2", "Qwen2ForCausalLM", sliding_window=None),
        rope={"rope_theta": 1_000_000.0, "rope_type": "default"},
        layer_types=["full_attention"] * _LAYERS,
    ),
    "Qwen3": _qwen(
        "qwen3",
        "Qwen3ForCausalLM",
        attention_bias=False,
        head_dim=24,
        rope_scaling=None,
        sliding_window=None,
        tie_word_embeddings=True,
    ),
    "Phi-3-mini 4k": _phi3(num_key_value_heads=4, sliding_window=12),
    "Phi-3-mini 128k": _phi3(
        num_key_value_heads=4, rope_scaling=_longrope(_HALF_HEAD), sliding_window=512
    ),
    "Phi-3, today": _today(
        _phi3(num_key_value_heads=4, sliding_window=12),
        rope={"partial_rotary_factor": 1.0, "rope_theta": 10_000.0, "rope_type": "default"},
    ),
    "Phi-4": _phi3(rope_theta=250_000.0, sliding_window=None),
    "Phi-4-mini": _phi3(
        full_attn_mod=1,
        interpolate_factor=1,
        lm_head_bias=False,
        mlp_bias=False,
        partial_rotary_factor=0.75,
        rope_scaling=_longrope(6),
        sliding_window=512,
        tie_word_embeddings=True,
    ),
    "Gemma 2": _gemma(
        "gemma2",
        "Gemma2ForCausalLM",
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        hidden_act="gelu_pytorch_tanh",
        rope_theta=10_000.0,
    ),
    "Gemma 3": _gemma(
        "gemma3_text",
        "Gemma3ForCausalLM",
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        rope_local_base_freq=10_000,
        rope_scaling=None,
        rope_theta=1_000_000,
        sliding_window_pattern=2,
    ),
    "Gemma 3, today": _today(
        _gemma(
            "gemma3_text",
            "Gemma3ForCausalLM",
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
            use_bidirectional_attention=False,
        ),
        rope={
            "full_attention": {"rope_theta": 1_000_000, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 10_000, "rope_type": "default"},
        },
        layer_types=["sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
    ),
    "OLMo 2": {
        **_SIZES,
        **_OLD,
        "architectures": ["Olmo2ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "model_type": "olmo2",
        "num_key_value_heads": 4,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 500_000,
        "tie_word_embeddings": False,
        "use_cache": False,
    },
}
