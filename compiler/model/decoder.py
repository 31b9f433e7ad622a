# SPDX-License-Identifier: Apache-2.0
"""Running a decoder a layer at a time, from tensors: memory is one layer, never the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding

from prunec.compiler.model.checkpoint import Checkpoint
from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.layout import LayerSpec
from prunec.compiler.model.modeling_prunec_llama import (
    PrunecLlamaDecoderLayer,
    shaped_decoder_layer,
)

#: Tokens of one forward pass. Small enough for a laptop, large enough for full matrix products.
BATCH_TOKENS = 8192


class Decoder:
    """A checkpoint's forward pass in pieces: embed, layers one by one, logits.

    Hidden states are [windows, length, hidden_size]; windows have no padding.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
        self.checkpoint = checkpoint
        self.facts = checkpoint.facts
        self.dtype = dtype
        self.device = device
        try:
            self._config = LlamaConfig.from_dict(dict(self.facts.config))
            self._config._attn_implementation = "sdpa"
            with torch.device("meta"):  # a dense layer, to see that the config can be built
                shaped_decoder_layer(self._config, 0, query_heads=1, kv_heads=1, ffn=1)
            self._rotary = LlamaRotaryEmbedding(self._config).to(device)
        except Exception as error:  # of any kind: whatever a config.json may hold
            raise ModelError(f"config.json makes no model: {error}") from error
        self._rotary_cache: dict[int, tuple[Tensor, Tensor]] = {}
        family = self.facts.family
        self._embedding = self._load(family.embedding)
        self._head = self._embedding if self.facts.tied else self._load(family.head)
        self._final_norm = LlamaRMSNorm(self.facts.hidden_size, self._config.rms_norm_eps)
        self._final_norm.weight = nn.Parameter(self._load(family.final_norm), requires_grad=False)

    def _load(self, name: str) -> Tensor:
        return self.checkpoint.tensor(name).to(self.device, self.dtype)

    def layer_tensors(self, index: int) -> dict[str, Tensor]:
        """A dense layer's tensors at the dtype and on the device of the forward pass."""
        tensors = self.checkpoint.layer(index)
        return {name: t.to(self.device, self.dtype) for name, t in tensors.items()}

    def layer(
        self, index: int, spec: LayerSpec, tensors: Mapping[str, Tensor]
    ) -> PrunecLlamaDecoderLayer:
        """A decoder layer of any shape, holding the given tensors (named relative to the layer)."""
        with torch.device("meta"):
            layer = shaped_decoder_layer(
                self._config,
                index,
                query_heads=spec.query_heads,
                kv_heads=spec.kv_heads,
                ffn=spec.ffn,
                query_groups=spec.query_groups,
            )
        here = {name: tensor.to(self.device, self.dtype) for name, tensor in tensors.items()}
        layer.load_state_dict(here, strict=True, assign=True)
        layer.eval().requires_grad_(False)
        return layer

    def batches(self, windows: int, length: int) -> Iterator[slice]:
        """Slices over windows of about BATCH_TOKENS tokens each."""
        size = max(1, BATCH_TOKENS // length)
        for start in range(0, windows, size):
            yield slice(start, min(start + size, windows))

    def embed(self, ids: Tensor) -> Tensor:
        """[windows, length] → hidden states."""
        return nn.functional.embedding(ids.to(self.device), self._embedding)

    def attend(self, layer: PrunecLlamaDecoderLayer, hidden: Tensor) -> Tensor:
        """Hidden states after a layer's attention and its residual sum."""
        if layer.self_attn is None:
            return hidden
        mixed: Tensor = layer.self_attn(
            hidden_states=layer.input_layernorm(hidden),
            position_embeddings=self._rotations(hidden.shape[1]),
            attention_mask=None,  # full windows: causal, and nothing else
        )[0]
        return hidden + mixed

    def feed(self, layer: PrunecLlamaDecoderLayer, hidden: Tensor) -> Tensor:
        """Hidden states after a layer's MLP and its residual sum."""
        if layer.mlp is None:
            return hidden
        widened: Tensor = layer.mlp(layer.post_attention_layernorm(hidden))
        return hidden + widened

    def logits(self, hidden: Tensor) -> Tensor:
        """[windows, length, hidden_size] → [windows, length, vocab_size], float32."""
        normed: Tensor = self._final_norm(hidden)
        return (normed @ self._head.T).float()

    def _rotations(self, length: int) -> tuple[Tensor, Tensor]:
        if length not in self._rotary_cache:
            positions = torch.arange(length, device=self.device)[None]
            like = torch.empty(0, dtype=self.dtype, device=self.device)
            self._rotary_cache[length] = self._rotary(like, positions)
        return self._rotary_cache[length]
