# SPDX-License-Identifier: Apache-2.0
"""Running a decoder a layer at a time, from tensors: memory is one layer, never the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from prunec.compiler.model.checkpoint import Checkpoint
from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import LayerSpec
from prunec.compiler.model.modeling import classes_of
from prunec.compiler.model.modeling.modeling_prunec import PerLayerDecoderLayer

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
        self._classes = classes_of(self.facts.family.model_type)
        try:
            self._config = dense_config(self.facts)
            with torch.device("meta"):  # a dense layer, to see that the config can be built
                self._classes.model.decoder_layer(self._config, 0, 1, 1, 1)
            self._shell = shell(self.facts).to(device)
        except Exception as error:  # of any kind: whatever a config.json may hold
            raise ModelError(f"config.json makes no model: {error}") from error
        # What every layer is given beside hidden states, by the length of the windows.
        self._given: dict[int, list[dict[str, Any]]] = {}
        family = self.facts.family
        inner = self._shell.model
        inner.embed_tokens.weight = self._load(family.embedding)
        inner.norm.weight = self._load(family.final_norm)
        tied = self.facts.tied
        self._head = inner.embed_tokens.weight if tied else self._load(family.head)

    def _load(self, name: str) -> nn.Parameter:
        tensor = self.checkpoint.tensor(name).to(self.device, self.dtype)
        return nn.Parameter(tensor, requires_grad=False)

    def layer_tensors(self, index: int) -> dict[str, Tensor]:
        """A dense layer's tensors at the dtype and on the device of the forward pass."""
        tensors = self.checkpoint.layer(index)
        return {name: t.to(self.device, self.dtype) for name, t in tensors.items()}

    def layer(
        self, index: int, spec: LayerSpec, tensors: Mapping[str, Tensor]
    ) -> PerLayerDecoderLayer:
        """A decoder layer of any shape, holding the given tensors (named relative to the layer)."""
        with torch.device("meta"):
            layer: PerLayerDecoderLayer = self._classes.model.decoder_layer(
                self._config, index, spec.query_heads, spec.kv_heads, spec.ffn, spec.query_groups
            )
        here = {name: tensor.to(self.device, self.dtype) for name, tensor in tensors.items()}
        layer.load_state_dict(here, strict=True, assign=True)
        layer.eval().requires_grad_(False)
        layer.index = index  # which positions and which mask it is given
        return layer

    def batches(self, windows: int, length: int) -> Iterator[slice]:
        """Slices over windows of about BATCH_TOKENS tokens each."""
        size = max(1, BATCH_TOKENS // length)
        for start in range(0, windows, size):
            yield slice(start, min(start + size, windows))

    def embed(self, ids: Tensor) -> Tensor:
        """[windows, length] → hidden states."""
        hidden: Tensor = self._shell.model.embed_tokens(ids.to(self.device))
        return hidden

    def attend(self, layer: PerLayerDecoderLayer, hidden: Tensor) -> Tensor:
        """Hidden states after a layer's attention and its residual sum."""
        return layer.attend(hidden, **self._given_to(layer.index, hidden.shape[1]))

    def feed(self, layer: PerLayerDecoderLayer, hidden: Tensor) -> Tensor:
        """Hidden states after a layer's MLP and its residual sum."""
        return layer.feed(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """[windows, length, hidden_size] → [windows, length, vocab_size], float32."""
        logits: Tensor = (self._shell.model.norm(hidden) @ self._head.T).float()
        cap = getattr(self._config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _given_to(self, index: int, length: int) -> dict[str, Any]:
        """Rotations and mask of a layer, as the stock model itself makes them."""
        if length not in self._given:
            self._given[length] = given_to_layers(self._shell, self._config, length, self.dtype)
        return self._given[length][index]


def dense_config(facts: Facts) -> PretrainedConfig:
    """The dense model's config, of our class for its family."""
    config = classes_of(facts.family.model_type).config.from_dict(
        {key: value for key, value in facts.config.items() if key != "model_type"}
    )
    # Kernels that cap no attention scores would leave the cap out without a word.
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    config._attn_implementation = "eager" if capped else "sdpa"
    assert isinstance(config, PretrainedConfig)
    return config


def shell(facts: Facts) -> Any:
    """The model without its layers and with a vocabulary of one: norm, rotations, scales."""
    config = dense_config(facts)
    config.num_hidden_layers, config.vocab_size, config.pad_token_id = 0, 1, None
    return classes_of(facts.family.model_type).causal_lm(config).eval().requires_grad_(False)


@torch.no_grad()
def given_to_layers(
    model: Any, config: PretrainedConfig, length: int, dtype: torch.dtype
) -> list[dict[str, Any]]:
    """What the stock forward pass hands every layer on windows of a length: one dict a layer.

    Runs it with layers that only note their arguments, so that masks, windows and rotations are the
    family's own.
    """
    noted: list[dict[str, Any]] = []

    class Note(nn.Module):
        def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
            noted.append(kwargs)
            return hidden_states

    inner, count = model.model, config.num_hidden_layers
    before, inner.config.num_hidden_layers = inner.layers, count
    inner.layers = nn.ModuleList([Note() for _ in range(count)])
    try:
        weight = inner.norm.weight
        hidden = torch.zeros(1, length, config.hidden_size, dtype=dtype, device=weight.device)
        inner(inputs_embeds=hidden, use_cache=False)
    finally:
        inner.layers, inner.config.num_hidden_layers = before, 0
    return noted
