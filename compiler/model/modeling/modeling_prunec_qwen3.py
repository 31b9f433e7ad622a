# SPDX-License-Identifier: Apache-2.0
"""Qwen3 with layers of different shapes. Lies beside exported weights, see `modeling_prunec`."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from .modeling_prunec import PerLayerConfig, PerLayerForCausalLM, PerLayerModel


@strict
class PrunecQwen3Config(PerLayerConfig, Qwen3Config):
    """Qwen3Config with `per_layer_config`."""

    model_type = "prunec_qwen3"


class PrunecQwen3Model(PerLayerModel, Qwen3Model):
    """Qwen3Model with each decoder layer in its own shape."""

    config_class = PrunecQwen3Config
    stock_layer = Qwen3DecoderLayer


class PrunecQwen3ForCausalLM(PerLayerForCausalLM, Qwen3ForCausalLM):
    """PrunecQwen3Model under a language-model head."""

    config_class = PrunecQwen3Config
    per_layer_model = PrunecQwen3Model


# save_pretrained then takes these files along, so that a saved copy loads as the original does.
PrunecQwen3Config.register_for_auto_class()
PrunecQwen3Model.register_for_auto_class("AutoModel")
PrunecQwen3ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
