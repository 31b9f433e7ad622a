# SPDX-License-Identifier: Apache-2.0
"""Llama with layers of different shapes. Lies beside exported weights, see `modeling_prunec`."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from .modeling_prunec import PerLayerConfig, PerLayerForCausalLM, PerLayerModel


@strict
class PrunecLlamaConfig(PerLayerConfig, LlamaConfig):
    """LlamaConfig with `per_layer_config`."""

    model_type = "prunec_llama"


class PrunecLlamaModel(PerLayerModel, LlamaModel):
    """LlamaModel with each decoder layer in its own shape."""

    config_class = PrunecLlamaConfig
    stock_layer = LlamaDecoderLayer


class PrunecLlamaForCausalLM(PerLayerForCausalLM, LlamaForCausalLM):
    """PrunecLlamaModel under a language-model head."""

    config_class = PrunecLlamaConfig
    per_layer_model = PrunecLlamaModel


# save_pretrained then takes these files along, so that a saved copy loads as the original does.
PrunecLlamaConfig.register_for_auto_class()
PrunecLlamaModel.register_for_auto_class("AutoModel")
PrunecLlamaForCausalLM.register_for_auto_class("AutoModelForCausalLM")
