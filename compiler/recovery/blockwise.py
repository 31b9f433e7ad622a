# SPDX-License-Identifier: Apache-2.0
"""Train a pruned model back a layer at a time: each to give what the dense layer gives.

A layer reads what the recovered layers before it make of the text; its aim is the hidden state
that the dense model has at the same place. All its weights are trained, with one layer, its
gradients and its optimiser's state in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.layout import dense_layout
from prunec.compiler.model.modeling.modeling_prunec import PerLayerDecoderLayer
from prunec.compiler.model.states import HiddenStates
from prunec.compiler.passes.gram import Streams, advance
from prunec.compiler.passes.nested import CutLayer
from prunec.compiler.recovery.judge import Judge, built, through

#: How often, on the way through the layers, the whole model is compared with the dense one.
_LOOKS = 4


@dataclass(frozen=True)
class Settings:
    """How each layer is trained; the fields are those of `recover` in a recipe."""

    learning_rate: float
    batch_tokens: int
    epochs: int
    seed: int


@dataclass(frozen=True)
class LayerRecovery:
    """How the training of one layer went.

    before, after: relative errors of its output on held-out text (see `relative_error`), by the
    weights that it had and those that it was trained to; kept: whether it has the latter;
    training: the mean relative error over the training's last tenth, None where nothing could be
    trained; parameters: how many were; divergence: of the whole model as it then stood from the
    dense one on held-out text, in nats per token, where that was measured
    """

    before: float
    after: float
    kept: bool
    training: float | None
    parameters: int
    divergence: float | None = None


@dataclass(frozen=True)
class BlockwiseRecovery:
    """How every layer went, and the divergence of the whole model from the dense one on held-out
    text before and after, in nats per token."""

    layers: tuple[LayerRecovery, ...]
    before: float
    after: float
    token_forwards: int

    @property
    def kept(self) -> bool:
        """Whether the model is better with the layers as they now are."""
        return self.after < self.before  # never of NaN


class RecoveryMemory(Protocol):
    """Where recovered layers are kept, so that a recovery that was stopped goes on."""

    def load(self, index: int) -> tuple[CutLayer, LayerRecovery] | None: ...

    def save(self, index: int, cut: CutLayer, recovery: LayerRecovery) -> None: ...


@torch.no_grad()
def recover_blockwise(
    decoder: Decoder,
    pruned: Callable[[int], CutLayer],
    ids: Tensor,
    held_out: Tensor,
    settings: Settings,
    memory: RecoveryMemory,
    on_tokens: Callable[[int, int, str], None] = lambda done, of, note: None,
) -> BlockwiseRecovery:
    """Train every layer of a pruned model; `memory` gets the results, at the dtype they came in.

    pruned: gives a layer as it was pruned; ids, held_out: [windows, length] token ids. A layer
    stays what it was unless training lowers its error on held-out text. on_tokens: told of tokens
    trained on over all layers, how many there will be, and how the last layers went.
    """
    layout = dense_layout(decoder.facts)
    texts = [Streams.start(decoder, text, with_dense=True) for text in (ids, held_out)]
    judge = Judge.of(decoder, pruned, held_out)
    looked = {math.ceil(len(layout) * look / _LOOKS) for look in range(1, _LOOKS + 1)}
    each = settings.epochs * ids.numel()
    found: list[LayerRecovery] = []
    for index, spec in enumerate(layout):
        dense = decoder.layer(index, spec, decoder.layer_tensors(index))
        for text in texts:
            assert text.dense is not None
            advance(decoder, text.dense, partial(through, decoder, dense))
        del dense
        saved = memory.load(index)
        if saved is None:
            told = partial(_tell, on_tokens, index * each, len(layout) * each)
            cut, recovery = _recover_layer(decoder, index, pruned(index), texts, settings, told)
        else:
            cut, recovery = saved
        layer = built(decoder, index, cut)
        for text in texts:
            advance(decoder, text.pruned, partial(through, decoder, layer))
        if saved is None:
            if index + 1 in looked:
                recovery = replace(
                    recovery, divergence=judge.divergence(texts[1].pruned, index + 1)
                )
            memory.save(index, cut, recovery)
        found.append(recovery)
        on_tokens((index + 1) * each, len(layout) * each, "tokens")
    after = found[-1].divergence
    assert after is not None  # looked at behind the last layer
    # Dense and recovered layers on all text, then forward and backward in training; on held-out
    # text whole models twice more, each layer before and after, and what looks take.
    spent = (2 + 3 * settings.epochs) * ids.numel() + (6 + (_LOOKS - 1) // 2) * held_out.numel()
    return BlockwiseRecovery(tuple(found), judge.before, after, spent)


def relative_error(output: Tensor, target: Tensor) -> Tensor:
    """[windows, length]: squared distance of each token's hidden state from the dense model's, over
    the dense one's square; float32.

    Token by token, since the norm that reads a hidden state first divides by its size: of a mean
    over all tokens, a few that are a thousand times as large would be all.
    """
    distance = (output.float() - target.float()).square().sum(dim=-1)
    return distance / target.float().square().sum(dim=-1).clamp(min=1e-12)


def train_layer(
    decoder: Decoder,
    layer: PerLayerDecoderLayer,
    inputs: HiddenStates | Tensor,
    targets: HiddenStates | Tensor,
    settings: Settings,
    seed: int,
    on_tokens: Callable[[int], None] = lambda done: None,
) -> float:
    """Train all weights of a float32 layer to turn inputs into targets, [windows, length,
    hidden_size] both. Returns the mean relative error over the last tenth of the steps; NaN, and
    stops, where errors are no longer finite."""
    windows, length = inputs.shape[:2]
    size = max(1, round(settings.batch_tokens / length))
    steps = settings.epochs * math.ceil(windows / size)
    optimizer = torch.optim.Adam(layer.parameters(), lr=settings.learning_rate)
    generator = torch.Generator().manual_seed(seed)
    errors: list[float] = []
    for _ in range(settings.epochs):
        order = torch.randperm(windows, generator=generator)
        for batch in order.split(size):
            rate = settings.learning_rate * (1 + math.cos(math.pi * len(errors) / steps)) / 2
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
            total = 0.0
            for some in batch.split(max(1, decoder.placement.batch_tokens // length)):
                with torch.enable_grad(), _precision(decoder):
                    output = through(decoder, layer, inputs[some].float())
                    error = relative_error(output, targets[some]).mean() * len(some) / len(batch)
                    error.backward()
                total += float(error.detach())
            if not math.isfinite(total):
                return math.nan
            optimizer.step()
            errors.append(total)
            on_tokens(len(batch) * length)
    last = errors[-max(1, steps // 10) :]
    return sum(last) / len(last)


def _recover_layer(
    decoder: Decoder,
    index: int,
    cut: CutLayer,
    texts: Sequence[Streams],
    settings: Settings,
    on_tokens: Callable[[int, float], None],
) -> tuple[CutLayer, LayerRecovery]:
    """A layer after its training if that lowered its held-out error, else as it was.

    texts: to train on, held out; dense streams behind the layer, pruned ones before it.
    """
    text, held_out = texts
    before = _error(decoder, index, cut, held_out)
    layer = built(decoder, index, cut, copied=True).float().requires_grad_(True)
    count = sum(parameter.numel() for parameter in layer.parameters())
    if not count:
        return cut, LayerRecovery(before, before, False, None, 0)
    assert text.dense is not None
    done = 0

    def tell(tokens: int) -> None:
        nonlocal done
        done += tokens
        on_tokens(done, before)

    seed = 1_000_003 * settings.seed + index
    error = train_layer(decoder, layer, text.pruned, text.dense, settings, seed, tell)
    trained = {
        name: parameter.detach().to(cut.tensors[name].dtype)
        for name, parameter in layer.state_dict().items()
    }
    candidate = CutLayer(cut.selection, trained)
    after = _error(decoder, index, candidate, held_out)
    kept = after < before  # never of NaN
    return candidate if kept else cut, LayerRecovery(before, after, kept, error, count)


def _error(decoder: Decoder, index: int, cut: CutLayer, text: Streams) -> float:
    """Mean relative error of a layer's output over a text."""
    layer, total = built(decoder, index, cut), 0.0
    assert text.dense is not None
    for batch in decoder.batches(*text.pruned.shape[:2]):
        output = through(decoder, layer, text.pruned[batch])
        total += float(relative_error(output, text.dense[batch]).double().sum())
    return total / text.pruned.shape[:2].numel()


def _precision(decoder: Decoder) -> AbstractContextManager[object]:
    """Products in bfloat16 where a GPU is to compute in it; weights and sums stay float32."""
    if decoder.device.type == "cuda" and decoder.dtype == torch.bfloat16:
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()


def _tell(
    on_tokens: Callable[[int, int, str], None], before: int, of: int, done: int, error: float
) -> None:
    on_tokens(before + done, of, f"tokens, layer's error was {error:.4f}")
