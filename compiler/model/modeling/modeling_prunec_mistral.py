# SPDX-License-Identifier: Apache-2.0
"""Mistral with layers of different shapes. Lies beside exported weights, see `modeling_prunec`."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import MistralConfig, MistralForCausalLM, MistralModel
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer

from .modeling_prunec import PerLayerConfig, PerLayerForCausalLM, PerLayerModel


@strict
class PrunecMistralConfig(PerLayerConfig, MistralConfig):
    """MistralConfig with `per_layer_config`."""

    model_type = "prunec_mistral"


class PrunecMistralModel(PerLayerModel, MistralModel):
    """MistralModel with each decoder layer in its own shape."""

    config_class = PrunecMistralConfig
    stock_layer = MistralDecoderLayer


class PrunecMistralForCausalLM(PerLayerForCausalLM, MistralForCausalLM):
    """PrunecMistralModel under a language-model head."""

    config_class = PrunecMistralConfig
    per_layer_model = PrunecMistralModel


# save_pretrained then takes these files along, so that a saved copy loads as the original does.
PrunecMistralConfig.register_for_auto_class()
PrunecMistralModel.register_for_auto_class("AutoModel")
PrunecMistralForCausalLM.register_for_auto_class("AutoModelForCausalLM")
