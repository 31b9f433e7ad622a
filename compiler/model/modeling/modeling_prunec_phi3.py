# SPDX-License-Identifier: Apache-2.0
"""Phi-3 with layers of different shapes. Lies beside exported weights, see `modeling_prunec`."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import Phi3Config, Phi3ForCausalLM, Phi3Model
from transformers.models.phi3.modeling_phi3 import Phi3DecoderLayer

from .modeling_prunec import PerLayerConfig, PerLayerForCausalLM, PerLayerModel


@strict
class PrunecPhi3Config(PerLayerConfig, Phi3Config):
    """Phi3Config with `per_layer_config`."""

    model_type = "prunec_phi3"

    def validate_rope(self) -> None:
        # Not Phi3Config's, which takes a head's size from the number of heads. Called by `@strict`.
        super(Phi3Config, self).validate_rope()


class PrunecPhi3Model(PerLayerModel, Phi3Model):
    """Phi3Model with each decoder layer in its own shape."""

    config_class = PrunecPhi3Config
    stock_layer = Phi3DecoderLayer
    around_attention = ("input_layernorm", "resid_attn_dropout")
    around_mlp = ("post_attention_layernorm", "resid_mlp_dropout")


class PrunecPhi3ForCausalLM(PerLayerForCausalLM, Phi3ForCausalLM):
    """PrunecPhi3Model under a language-model head."""

    config_class = PrunecPhi3Config
    per_layer_model = PrunecPhi3Model


# save_pretrained then takes these files along, so that a saved copy loads as the original does.
PrunecPhi3Config.register_for_auto_class()
PrunecPhi3Model.register_for_auto_class("AutoModel")
PrunecPhi3ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
