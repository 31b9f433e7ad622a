# SPDX-License-Identifier: Apache-2.0
"""Gemma 3 with layers of different shapes. Lies beside exported weights, see `modeling_prunec`."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, Gemma3TextModel
from transformers.models.gemma3.modeling_gemma3 import Gemma3DecoderLayer

from .modeling_prunec import PerLayerConfig, PerLayerForCausalLM, PerLayerModel


@strict
class PrunecGemma3TextConfig(PerLayerConfig, Gemma3TextConfig):
    """Gemma3TextConfig with `per_layer_config`."""

    model_type = "prunec_gemma3_text"


class PrunecGemma3TextModel(PerLayerModel, Gemma3TextModel):
    """Gemma3TextModel with each decoder layer in its own shape."""

    config_class = PrunecGemma3TextConfig
    stock_layer = Gemma3DecoderLayer
    around_attention = ("input_layernorm", "post_attention_layernorm")
    around_mlp = ("pre_feedforward_layernorm", "post_feedforward_layernorm")


class PrunecGemma3ForCausalLM(PerLayerForCausalLM, Gemma3ForCausalLM):
    """PrunecGemma3TextModel under a language-model head."""

    config_class = PrunecGemma3TextConfig
    per_layer_model = PrunecGemma3TextModel


# save_pretrained then takes these files along, so that a saved copy loads as the original does.
PrunecGemma3TextConfig.register_for_auto_class()
PrunecGemma3TextModel.register_for_auto_class("AutoModel")
PrunecGemma3ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
