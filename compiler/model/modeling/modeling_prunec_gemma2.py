# SPDX-License-Identifier: Apache-2.0
"""Gemma 2 with layers of different shapes. Lies beside exported weights, see `modeling_prunec`."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import Gemma2Config, Gemma2ForCausalLM, Gemma2Model
from transformers.models.gemma2.modeling_gemma2 import Gemma2DecoderLayer

from .modeling_prunec import PerLayerConfig, PerLayerForCausalLM, PerLayerModel


@strict
class PrunecGemma2Config(PerLayerConfig, Gemma2Config):
    """Gemma2Config with `per_layer_config`."""

    model_type = "prunec_gemma2"


class PrunecGemma2Model(PerLayerModel, Gemma2Model):
    """Gemma2Model with each decoder layer in its own shape."""

    config_class = PrunecGemma2Config
    stock_layer = Gemma2DecoderLayer
    around_attention = ("input_layernorm", "post_attention_layernorm")
    around_mlp = ("pre_feedforward_layernorm", "post_feedforward_layernorm")


class PrunecGemma2ForCausalLM(PerLayerForCausalLM, Gemma2ForCausalLM):
    """PrunecGemma2Model under a language-model head."""

    config_class = PrunecGemma2Config
    per_layer_model = PrunecGemma2Model


# save_pretrained then takes these files along, so that a saved copy loads as the original does.
PrunecGemma2Config.register_for_auto_class()
PrunecGemma2Model.register_for_auto_class("AutoModel")
PrunecGemma2ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
