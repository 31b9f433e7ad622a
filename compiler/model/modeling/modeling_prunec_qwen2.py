# SPDX-License-Identifier: Apache-2.0
"""Qwen2 with layers of different shapes. Lies beside exported weights, see `modeling_prunec`."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Model
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from .modeling_prunec import PerLayerConfig, PerLayerForCausalLM, PerLayerModel


@strict
class PrunecQwen2Config(PerLayerConfig, Qwen2Config):
    """Qwen2Config with `per_layer_config`."""

    model_type = "prunec_qwen2"


class PrunecQwen2Model(PerLayerModel, Qwen2Model):
    """Qwen2Model with each decoder layer in its own shape."""

    config_class = PrunecQwen2Config
    stock_layer = Qwen2DecoderLayer


class PrunecQwen2ForCausalLM(PerLayerForCausalLM, Qwen2ForCausalLM):
    """PrunecQwen2Model under a language-model head."""

    config_class = PrunecQwen2Config
    per_layer_model = PrunecQwen2Model


# save_pretrained then takes these files along, so that a saved copy loads as the original does.
PrunecQwen2Config.register_for_auto_class()
PrunecQwen2Model.register_for_auto_class("AutoModel")
PrunecQwen2ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
