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
from prunec.compiler.model.placement import ROOMY, Placement
from prunec.compiler.model.states import HiddenStates

#: Logits that are alive at once.
LOGIT_BYTES = 2**27


class Decoder:
    """A checkpoint's forward pass in pieces: embed, layers one by one, logits.

    Hidden states are [windows, length, hidden_size]; windows have no padding.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        placement: Placement = ROOMY,
    ) -> None:
        self.checkpoint = checkpoint
        self.facts = checkpoint.facts
        self.dtype = dtype
        self.device = device
        self.placement = placement
        self._classes = classes_of(self.facts.family.model_type)
        try:
            self._config = dense_config(self.facts)
            with torch.device("meta"):  # a dense layer, to see that the config can be built
                self._classes.model.decoder_layer(self._config, 0, 1, 1, 1)
            self._shell = shell(self.facts).to(device)
            given_to_layers(self._shell, self._config, 2, dtype)  # and masks be made
        except Exception as error:  # of any kind: whatever a config.json may hold
            raise ModelError(f"config.json makes no model: {error}") from error
        # What every layer is given beside hidden states, by the length of the windows.
        self._given: dict[int, list[dict[str, Any]]] = {}
        # The embedding, the head and the last norm, by name, while they are in memory.
        self._vocabulary: dict[str, nn.Parameter] = {}

    def _load(self, name: str) -> nn.Parameter:
        if name not in self._vocabulary:
            tensor = self.checkpoint.tensor(name).to(self.device, self.dtype)
            self._vocabulary[name] = nn.Parameter(tensor, requires_grad=False)
        return self._vocabulary[name]

    def release(self) -> None:
        """Let go of the embedding and the head, unless they are to stay; what needs them next reads
        them again."""
        if not self.placement.vocabulary_stays:
            self._vocabulary.clear()

    def layer_tensors(self, index: int, having: LayerSpec | None = None) -> dict[str, Tensor]:
        """A dense layer's tensors at the dtype and on the device of the forward pass; where there
        is a spec, those of the sublayers that it has."""
        tensors = self.checkpoint.layer(index, having)
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
        """Slices over windows of about as many tokens as one forward pass takes."""
        yield from self._slices(windows, self.placement.batch_tokens // length)

    def few(self, windows: int, length: int) -> Iterator[slice]:
        """Slices over so few windows that the logits of one slice may be alive at once."""
        yield from self._slices(windows, LOGIT_BYTES // (4 * length * self.facts.vocab_size))

    def _slices(self, windows: int, size: int) -> Iterator[slice]:
        size = max(1, size)
        for start in range(0, windows, size):
            yield slice(start, min(start + size, windows))

    def embed(self, ids: Tensor) -> Tensor:
        """[windows, length] → hidden states."""
        family, embed = self.facts.family, self._shell.model.embed_tokens
        ids = ids.to(self.device)
        if self.placement.vocabulary_stays or family.embedding in self._vocabulary:
            embed.weight = self._load(family.embedding)
        else:  # of a vocabulary of its own, the tokens that occur
            tokens, ids = ids.unique(return_inverse=True)
            rows = self.checkpoint.rows(family.embedding, tokens.cpu())
            embed.weight = nn.Parameter(rows.to(self.device, self.dtype), requires_grad=False)
        hidden: Tensor = embed(ids)
        embed.weight = None
        return hidden

    def states(self, windows: int, length: int) -> HiddenStates:
        """Room for the hidden states of so many windows, where the placement has it."""
        shape = (windows, length, self.facts.hidden_size)
        return HiddenStates(shape, self.dtype, self.device, self.placement)

    def embedded(self, ids: Tensor) -> HiddenStates:
        """[windows, length] → hidden states of all of them, batch by batch."""
        states = self.states(*ids.shape)
        for batch in self.batches(*ids.shape):
            states[batch] = self.embed(ids[batch])
        return states

    def attend(self, layer: PerLayerDecoderLayer, hidden: Tensor) -> Tensor:
        """Hidden states after a layer's attention and its residual sum."""
        return layer.attend(hidden, **self._given_to(layer.index, hidden.shape[1]))

    def feed(self, layer: PerLayerDecoderLayer, hidden: Tensor) -> Tensor:
        """Hidden states after a layer's MLP and its residual sum."""
        return layer.feed(hidden)

    @property
    def head(self) -> Tensor:
        """[vocab_size, hidden_size]: what turns normed hidden states into logits."""
        return self._load(
            self.facts.family.embedding if self.facts.tied else self.facts.family.head
        )

    def normed(self, hidden: Tensor) -> Tensor:
        """The last norm of hidden states."""
        norm = self._shell.model.norm
        norm.weight = self._load(self.facts.family.final_norm)
        normed: Tensor = norm(hidden)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """[windows, length, hidden_size] → [windows, length, vocab_size], float32."""
        logits: Tensor = (self.normed(hidden) @ self.head.T).float()
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
        {key: value for key, value in facts.settled().items() if key != "model_type"}
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
        device = inner.norm.weight.device
        hidden = torch.zeros(1, length, config.hidden_size, dtype=dtype, device=device)
        inner(inputs_embeds=hidden, use_cache=False)
    finally:
        inner.layers, inner.config.num_hidden_layers = before, 0
    return noted
