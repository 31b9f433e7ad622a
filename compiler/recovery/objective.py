# SPDX-License-Identifier: Apache-2.0
"""What a pruned model is trained to do: say the text's next token, say what the dense model says,
compute what the dense model computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.layout import dense_layout
from prunec.compiler.recovery.teacher import StoredTeacher
from prunec.compiler.search.divergence import TeacherDistributions, divergence


@dataclass(frozen=True)
class Text:
    """Windows of tokens, [windows, length] on the CPU, and what the dense model says of them."""

    ids: Tensor
    teacher: StoredTeacher | None


@dataclass(frozen=True)
class Weights:
    """Of the terms of the loss, see `Objective`."""

    labels: float
    divergence: float
    hidden: float

    def in_words(self) -> str:
        """What the loss is, with its unit where it is one term of weight 1."""
        terms = [
            (self.labels, "next-token loss"),
            (self.divergence, "divergence from the dense model"),
            (self.hidden, "distance of hidden states"),
        ]
        said = [(weight, name) for weight, name in terms if weight]
        if said in ([(1.0, terms[0][1])], [(1.0, terms[1][1])]):
            return f"{said[0][1]}, nats per token"
        return " + ".join(name if weight == 1 else f"{weight:g} × {name}" for weight, name in said)


class DenseStates:
    """The dense model's hidden states behind every layer; its layers stay in memory."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._layers = [
            decoder.layer(index, spec, decoder.layer_tensors(index))
            for index, spec in enumerate(dense_layout(decoder.facts))
        ]

    @torch.no_grad()
    def of(self, ids: Tensor) -> Iterator[Tensor]:
        """[windows, length] → [windows, length, hidden_size] behind each layer in turn."""
        hidden = self._decoder.embed(ids)
        for layer in self._layers:
            hidden = self._decoder.feed(layer, self._decoder.attend(layer, hidden))
            yield hidden


class Objective:
    """The loss of a causal language model on windows of a text, [windows] float32:

    labels × mean −log p(next token) + divergence × mean KL(dense ‖ model), see
    `search.divergence`, + hidden × mean over layers of the hidden states' mean squared distance
    from the dense model's, over the mean square of those.
    """

    def __init__(self, weights: Weights, dense: DenseStates | None) -> None:
        """dense: needed if `weights.hidden` is not 0, as a text's teacher is for the divergence"""
        self.weights = weights
        self._dense = dense

    def __call__(self, model: Any, text: Text, windows: Sequence[int]) -> Tensor:
        ids = text.ids[list(windows)].to(model.device)
        weights = self.weights
        with _noted_states(model, noting=weights.hidden > 0) as states:
            logits = model(input_ids=ids, use_cache=False).logits.float()
        loss = torch.zeros(len(windows), device=logits.device)
        if weights.labels:
            loss = loss + weights.labels * next_token_loss(logits, ids)
        if weights.divergence:
            assert text.teacher is not None
            teacher = on_device(text.teacher.read(windows), logits.device)
            loss = loss + weights.divergence * divergence(teacher, logits)
        if weights.hidden:
            assert self._dense is not None
            distances = [
                relative_distance(states[index], wanted)
                for index, wanted in enumerate(self._dense.of(ids))
            ]
            loss = loss + weights.hidden * torch.stack(distances).mean(dim=0)
        return loss


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """[windows]: mean over positions of −log p(the token that follows), in nats.

    logits: [windows, length, vocab]; ids: [windows, length]
    """
    ahead = logits[:, :-1].log_softmax(dim=-1).gather(-1, ids[:, 1:, None])
    return -ahead[..., 0].mean(dim=-1)


def relative_distance(states: Tensor, wanted: Tensor) -> Tensor:
    """[windows]: mean squared distance over the mean square of what is wanted.

    Both [windows, length, hidden_size]; computed in float32.
    """
    wanted = wanted.float()
    distance = (states.float() - wanted).square().mean(dim=(1, 2))
    return distance / wanted.square().mean(dim=(1, 2))


def on_device(teacher: TeacherDistributions, device: torch.device) -> TeacherDistributions:
    return TeacherDistributions(
        teacher.ids.to(device), teacher.log_probs.to(device), teacher.log_tail.to(device)
    )


@contextmanager
def _noted_states(model: Any, *, noting: bool) -> Iterator[dict[int, Tensor]]:
    """What every layer puts out while the context is open, by its index."""
    states: dict[int, Tensor] = {}

    def note(index: int) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            states[index] = output[0] if isinstance(output, tuple) else output

        return hook

    layers = layers_of(model) if noting else []
    hooks = [layer.register_forward_hook(note(index)) for index, layer in enumerate(layers)]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def layers_of(model: Any) -> list[Any]:
    """The decoder layers of a causal language model, with adapters on it or without."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return list(base.model.layers)
