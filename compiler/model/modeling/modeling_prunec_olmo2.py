# SPDX-License-Identifier: Apache-2.0
"""OLMo 2 with layers of different shapes. Lies beside exported weights, see `modeling_prunec`."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import Olmo2Config, Olmo2ForCausalLM, Olmo2Model
from transformers.models.olmo2.modeling_olmo2 import Olmo2DecoderLayer

from .modeling_prunec import PerLayerConfig, PerLayerForCausalLM, PerLayerModel


@strict
class PrunecOlmo2Config(PerLayerConfig, Olmo2Config):
    """Olmo2Config with `per_layer_config`."""

    model_type = "prunec_olmo2"


class PrunecOlmo2Model(PerLayerModel, Olmo2Model):
    """Olmo2Model with each decoder layer in its own shape."""

    config_class = PrunecOlmo2Config
    stock_layer = Olmo2DecoderLayer
    around_attention = (None, "post_attention_layernorm")
    around_mlp = (None, "post_feedforward_layernorm")


class PrunecOlmo2ForCausalLM(PerLayerForCausalLM, Olmo2ForCausalLM):
    """PrunecOlmo2Model under a language-model head."""

    config_class = PrunecOlmo2Config
    per_layer_model = PrunecOlmo2Model


# save_pretrained then takes these files along, so that a saved copy loads as the original does.
PrunecOlmo2Config.register_for_auto_class()
PrunecOlmo2Model.register_for_auto_class("AutoModel")
PrunecOlmo2ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
