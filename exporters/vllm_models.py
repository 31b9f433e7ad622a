# SPDX-License-Identifier: Apache-2.0
"""Models for vLLM whose decoder layers each have their own shape, built from vLLM's own layers.

A layer is vLLM's layer of the family at its own sizes, so that quantised weights, tensor
parallelism and LoRA work as they do there; an absent sublayer has no weights, takes no time and has
no KV cache. Loaded by name, in the processes that run a model: see `vllm_plugin.register`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.models.interfaces import SupportsLoRA, SupportsPP, SupportsQuant
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    PPMissingLayer,
    WeightsMapper,
    make_empty_intermediate_tensors_factory,
    make_layers,
    maybe_prefix,
)
from vllm.sequence import IntermediateTensors

from prunec.exporters import vllm_layers
from prunec.exporters.vllm_layers import Family, ShapedLayer

_FIRST = {0: "tokens"}  # the only size that varies between calls


@support_torch_compile(
    dynamic_arg_dims={
        "input_ids": _FIRST,
        "positions": _FIRST,
        "intermediate_tensors": _FIRST,
        "inputs_embeds": _FIRST,
    }
)
class PrunecModel(nn.Module):
    """Embedding, shaped layers and the last norm, or a pipeline stage's part of them."""

    embedding_scale: Tensor | None

    def __init__(self, *, vllm_config: VllmConfig, family: Family, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.config = config
        group = get_pp_group()
        embeds = group.is_first_rank or (config.tie_word_embeddings and group.is_last_rank)
        self.embed_tokens = (
            VocabParallelEmbedding(
                config.vocab_size,
                config.hidden_size,
                quant_config=vllm_config.quant_config,
                prefix=maybe_prefix(prefix, "embed_tokens"),
            )
            if embeds
            else PPMissingLayer()
        )
        self.start_layer, self.end_layer, self.layers = make_layers(
            config.num_hidden_layers,
            lambda prefix: ShapedLayer(family, vllm_config, prefix),
            prefix=maybe_prefix(prefix, "layers"),
        )
        self.norm = (
            family.norm(config.hidden_size, eps=config.rms_norm_eps)
            if group.is_last_rank
            else PPMissingLayer()
        )
        # In the model's dtype, as the family's own implementation rounds it.
        scale = torch.tensor(config.hidden_size**0.5) if family.scaled_embedding else None
        self.register_buffer("embedding_scale", scale, persistent=False)
        self.make_empty_intermediate_tensors = make_empty_intermediate_tensors_factory(
            ["hidden_states", "residual"], config.hidden_size
        )

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        embedded: Tensor = self.embed_tokens(input_ids)
        return embedded if self.embedding_scale is None else embedded * self.embedding_scale

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor | IntermediateTensors:
        """[tokens] → [tokens, hidden], or what the next pipeline stage goes on with."""
        residual: Tensor | None
        if get_pp_group().is_first_rank:
            hidden, residual = inputs_embeds, None
            if hidden is None:
                assert input_ids is not None
                hidden = self.embed_input_ids(input_ids)
        else:
            assert intermediate_tensors is not None
            hidden = intermediate_tensors["hidden_states"]
            residual = intermediate_tensors["residual"]
        for layer in islice(self.layers, self.start_layer, self.end_layer):
            hidden, residual = layer(positions, hidden, residual)
        if not get_pp_group().is_last_rank:
            if residual is None:  # no layer of this stage has anything to do
                hidden, residual = torch.zeros_like(hidden), hidden
            return IntermediateTensors({"hidden_states": hidden, "residual": residual})
        return vllm_layers.normed(self.norm, hidden, residual)[0]


class PrunecForCausalLM(nn.Module, SupportsLoRA, SupportsPP, SupportsQuant):
    """PrunecModel under a language-model head; what differs between families is in `family`."""

    family: ClassVar[Family]

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_stacked={
            ".q_proj": (".qkv_proj", "q"),
            ".k_proj": (".qkv_proj", "k"),
            ".v_proj": (".qkv_proj", "v"),
            ".gate_proj": (".gate_up_proj", 0),
            ".up_proj": (".gate_up_proj", 1),
        }
    )
    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    embedding_modules: ClassVar[dict[str, str]] = {
        "embed_tokens": "input_embeddings",
        "lm_head": "output_embeddings",
    }

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.config = config
        self.model = PrunecModel(
            vllm_config=vllm_config, family=self.family, prefix=maybe_prefix(prefix, "model")
        )
        self.lm_head: Any = PPMissingLayer()
        if get_pp_group().is_last_rank:
            self.lm_head = ParallelLMHead(
                config.vocab_size,
                config.hidden_size,
                quant_config=vllm_config.quant_config,
                prefix=maybe_prefix(prefix, "lm_head"),
            )
            if config.tie_word_embeddings:
                self.lm_head = self.lm_head.tie_weights(self.model.embed_tokens)
        soft_cap = getattr(config, "final_logit_softcapping", None)
        self.logits_processor = LogitsProcessor(config.vocab_size, soft_cap=soft_cap)
        self.make_empty_intermediate_tensors = self.model.make_empty_intermediate_tensors

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return self.model.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor | IntermediateTensors:
        """See PrunecModel."""
        return self.model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """[tokens, hidden] → [tokens, vocabulary]; None on all ranks but the one that samples."""
        logits: Tensor | None = self.logits_processor(self.lm_head, hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Names of the parameters that the checkpoint's tensors went into."""
        loaded: set[str] = AutoWeightsLoader(self).load_weights(
            weights, mapper=self.hf_to_vllm_mapper
        )
        return loaded


class PrunecLlamaForCausalLM(PrunecForCausalLM):
    family = vllm_layers.LLAMA


class PrunecMistralForCausalLM(PrunecForCausalLM):
    family = vllm_layers.MISTRAL


class PrunecQwen2ForCausalLM(PrunecForCausalLM):
    family = vllm_layers.QWEN2


class PrunecQwen3ForCausalLM(PrunecForCausalLM):
    family = vllm_layers.QWEN3


class PrunecGemma2ForCausalLM(PrunecForCausalLM):
    family = vllm_layers.GEMMA2


class PrunecGemma3ForCausalLM(PrunecForCausalLM):
    family = vllm_layers.GEMMA3


class PrunecPhi3ForCausalLM(PrunecForCausalLM):
    """Phi-3's checkpoints hold the fused projections that vLLM makes of the others'."""

    family = vllm_layers.PHI3
    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {
        "qkv_proj": ["qkv_proj"],
        "gate_up_proj": ["gate_up_proj"],
    }
