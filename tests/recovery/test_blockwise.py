# SPDX-License-Identifier: Apache-2.0
"""Training layer by layer, held against plain float64 code and whole models of transformers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from prunec.compiler.model.checkpoint import Checkpoint
from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.folder import facts_from_folder
from prunec.compiler.model.layout import LayerSelection
from prunec.compiler.model.placement import ROOMY, Placement
from prunec.compiler.model.surgery import slice_layer
from prunec.compiler.passes.nested import CutLayer
from prunec.compiler.recovery.blockwise import (
    BlockwiseRecovery,
    LayerRecovery,
    Settings,
    recover_blockwise,
    train_layer,
)

SETTINGS = Settings(learning_rate=3e-3, batch_tokens=64, epochs=1, seed=0)
WHOLE = LayerSelection((0, 1, 2, 3), (0, 1), tuple(range(96)))
HALF = LayerSelection((0, 1), (0,), tuple(range(0, 96, 2)))
UNEVEN = LayerSelection((0, 1, 2), (0, 1), tuple(range(48)), query_groups=(2, 1))
NO_ATTENTION = LayerSelection((), (), tuple(range(48)))
NO_MLP = LayerSelection((2, 3), (1,), ())


@pytest.fixture(autouse=True, params=[int(os.environ["PRUNEC_TEST_SEED"])], ids="seed {}".format)
def _fresh_numbers(request: pytest.FixtureRequest) -> None:
    torch.manual_seed(request.param)


class Memory:
    """Keeps all layers; gives back those that an earlier recovery had finished."""

    def __init__(self, known: dict[int, tuple[CutLayer, LayerRecovery]] | None = None) -> None:
        self.known = known or {}
        self.saved: dict[int, tuple[CutLayer, LayerRecovery]] = {}

    def load(self, index: int) -> tuple[CutLayer, LayerRecovery] | None:
        return self.known.get(index)

    def save(self, index: int, cut: CutLayer, recovery: LayerRecovery) -> None:
        self.saved[index] = cut, recovery


def _decoder(
    folder: Path, dtype: torch.dtype = torch.float32, placement: Placement = ROOMY
) -> Decoder:
    checkpoint = Checkpoint(folder, facts_from_folder(folder))
    return Decoder(checkpoint, dtype, torch.device("cpu"), placement)


def _cuts(decoder: Decoder, *selections: LayerSelection) -> list[CutLayer]:
    return [
        CutLayer(chosen, slice_layer(decoder.facts, decoder.layer_tensors(index), chosen))
        for index, chosen in enumerate(selections)
    ]


def _text(windows: int, length: int = 16) -> Tensor:
    return torch.randint(3, 300, (windows, length))


def _recover(
    decoder: Decoder,
    cuts: list[CutLayer],
    memory: Memory,
    ids: Tensor,
    held_out: Tensor,
    **more: Any,
) -> BlockwiseRecovery:
    settings = Settings(**(vars(SETTINGS) | more))
    return recover_blockwise(decoder, cuts.__getitem__, ids, held_out, settings, memory)


# --- one layer, in float64 ------------------------------------------------------------------------


def _rms(hidden: Tensor, weight: Tensor) -> Tensor:
    return weight * hidden / (hidden.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def _rotated(heads: Tensor) -> Tensor:
    """heads: [windows, heads, length, head_dim]; the plain rotary embedding of theta 1e4."""
    length, dim = heads.shape[-2:]
    speeds = 1e4 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    turns = torch.arange(length, dtype=torch.float64)[:, None] * speeds
    one, two = heads[..., : dim // 2], heads[..., dim // 2 :]
    cos, sin = turns.cos(), turns.sin()
    return torch.cat([one * cos - two * sin, two * cos + one * sin], dim=-1)


def _llama_layer(w: dict[str, Tensor], hidden: Tensor, dim: int = 16) -> Tensor:
    def heads(states: Tensor, name: str) -> Tensor:
        rows = states @ w[f"self_attn.{name}_proj.weight"].T
        split: Tensor = rows.unflatten(-1, (-1, dim))
        return split.transpose(1, 2)

    states = _rms(hidden, w["input_layernorm.weight"])
    q, k, v = (heads(states, name) for name in "qkv")
    shared = q.shape[1] // k.shape[1]
    k, v = (kv.repeat_interleave(shared, dim=1) for kv in (_rotated(k), v))
    scores = _rotated(q) @ k.transpose(-1, -2) / dim**0.5
    future = torch.ones(scores.shape[-2:]).triu(1).bool()
    mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
    hidden = hidden + mixed.transpose(1, 2).flatten(2) @ w["self_attn.o_proj.weight"].T
    states = _rms(hidden, w["post_attention_layernorm.weight"])
    gate, up = (states @ w[f"mlp.{name}_proj.weight"].T for name in ("gate", "up"))
    hidden = hidden + (gate * gate.sigmoid() * up) @ w["mlp.down_proj.weight"].T
    return hidden


def _adam(weights: dict[str, Tensor], steps: list[tuple[Tensor, Tensor]], rate: float) -> None:
    """Train in place on (inputs, targets) of every step, the rate falling as a cosine."""
    first, second = ({n: torch.zeros_like(w) for n, w in weights.items()} for _ in range(2))
    for number, (inputs, targets) in enumerate(steps):
        for weight in weights.values():
            weight.requires_grad_(True)
        missed = (_llama_layer(weights, inputs) - targets).square().sum(-1)
        loss = (missed / targets.square().sum(-1)).mean()
        gradients = torch.autograd.grad(loss, list(weights.values()))
        now = rate * (1 + torch.cos(torch.tensor(torch.pi * number / len(steps)))) / 2
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            weight.requires_grad_(False)
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            mean = first[name] / (1 - 0.9 ** (number + 1))
            spread = (second[name] / (1 - 0.999 ** (number + 1))).sqrt()
            weight -= now * mean / (spread + 1e-8)


def test_a_layer_is_trained_as_adam_does_on_gradients_of_a_float64_reference(
    tiny_llama: Callable[..., Path],
) -> None:
    # A step's gradient comes in two parts.
    decoder = _decoder(tiny_llama(), placement=Placement(batch_tokens=32))
    cut = _cuts(decoder, HALF)[0]
    inputs, targets = torch.randn(12, 16, 64), torch.randn(12, 16, 64)
    targets[:, 0] *= 1000  # no single token decides
    layer = decoder.layer(0, HALF.spec(16), {n: t.clone() for n, t in cut.tensors.items()})
    layer.requires_grad_(True)
    with torch.no_grad():
        train_layer(decoder, layer, inputs, targets, SETTINGS, seed=5)

    reference = {name: tensor.double() for name, tensor in cut.tensors.items()}
    order = torch.randperm(12, generator=torch.Generator().manual_seed(5))
    steps = [(inputs[some].double(), targets[some].double()) for some in order.split(4)]
    _adam(reference, steps, SETTINGS.learning_rate)
    for name, trained in layer.state_dict().items():
        moved = reference[name] - cut.tensors[name].double()
        assert moved.norm() > 0
        assert (trained - reference[name]).norm() < 1e-3 * moved.norm(), name


# --- whole models ---------------------------------------------------------------------------------


def _divergence(folder: Path, cuts: list[CutLayer], ids: Tensor) -> float:
    """KL(dense ‖ model with these layers) in nats per token, by transformers in float64."""
    dense, changed = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64) for _ in range(2)
    )
    for index, cut in enumerate(cuts):
        changed.model.layers[index].load_state_dict({n: t.double() for n, t in cut.tensors.items()})
    with torch.no_grad():
        wanted, given = (m(ids).logits.log_softmax(-1) for m in (dense, changed))
    return float((wanted.exp() * (wanted - given)).sum(-1).mean())


def test_divergences_are_those_of_whole_models(tiny_llama: Callable[..., Path]) -> None:
    folder = tiny_llama()
    decoder, held_out = _decoder(folder), _text(8)
    cuts = _cuts(decoder, WHOLE, WHOLE, WHOLE)
    for cut in cuts:
        for tensor in cut.tensors.values():
            tensor += 0.05 * torch.randn(tensor.shape)
    memory = Memory()
    found = _recover(decoder, cuts, memory, _text(64), held_out)
    trained = [memory.saved[index][0] for index in range(3)]
    assert found.before == pytest.approx(_divergence(folder, cuts, held_out), rel=1e-3)
    assert found.after == pytest.approx(_divergence(folder, trained, held_out), rel=1e-3)
    assert found.kept and found.after < found.before
    half_way = [*trained[:1], *cuts[1:]]
    looked = found.layers[0].divergence
    assert looked == pytest.approx(_divergence(folder, half_way, held_out), rel=1e-3)


@pytest.mark.parametrize(
    ("family", "selection"),
    [("llama", UNEVEN), ("qwen3", HALF), ("phi3", HALF), ("gemma2", HALF)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_layers_of_any_shape_come_nearer_to_the_dense_ones(
    family: str, selection: LayerSelection, tiny_family: Callable[..., Path]
) -> None:
    decoder = _decoder(tiny_family(family), torch.bfloat16)
    cuts = _cuts(decoder, selection, NO_ATTENTION, NO_MLP)
    before = [{n: t.clone() for n, t in cut.tensors.items()} for cut in cuts]
    memory = Memory()
    found = _recover(decoder, cuts, memory, _text(128), _text(16))
    assert found.after < found.before
    for index, (cut, layer) in enumerate(memory.saved.values()):
        assert layer.kept and layer.after < layer.before
        assert cut.selection == cuts[index].selection
        assert {n: (t.shape, t.dtype) for n, t in cut.tensors.items()} == {
            n: (t.shape, t.dtype) for n, t in before[index].items()
        }
        assert layer.parameters == sum(t.numel() for t in cut.tensors.values())
        assert any(not torch.equal(t, before[index][n]) for n, t in cut.tensors.items())
        # What was given is never written to.
        assert all(torch.equal(t, before[index][n]) for n, t in cuts[index].tensors.items())


def test_a_recovery_that_was_stopped_goes_on_at_the_layer(tiny_llama: Callable[..., Path]) -> None:
    decoder, ids, held_out = _decoder(tiny_llama(), torch.bfloat16), _text(32), _text(8)
    cuts = _cuts(decoder, HALF, HALF, HALF)
    whole, rest = Memory(), Memory()
    found = _recover(decoder, cuts, whole, ids, held_out)
    rest.known = {index: whole.saved[index] for index in (0, 1)}
    assert _recover(decoder, cuts, rest, ids, held_out) == found
    assert list(rest.saved) == [2]
    for name, tensor in whole.saved[2][0].tensors.items():
        assert torch.equal(rest.saved[2][0].tensors[name], tensor)


@pytest.mark.parametrize("rate", [1e6, 1e30])
def test_a_training_that_does_harm_leaves_the_layers_as_they_were(
    rate: float, tiny_llama: Callable[..., Path]
) -> None:
    decoder = _decoder(tiny_llama())
    cuts, memory = _cuts(decoder, HALF, HALF, HALF), Memory()
    found = _recover(decoder, cuts, memory, _text(16), _text(8), learning_rate=rate)
    assert not found.kept and found.after == found.before
    for index, (cut, layer) in memory.saved.items():
        assert not layer.kept and not layer.after < layer.before
        assert cut is cuts[index]


def test_layers_without_weights_are_passed_by(tiny_llama: Callable[..., Path]) -> None:
    decoder, memory = _decoder(tiny_llama()), Memory()
    cuts = _cuts(decoder, HALF, LayerSelection((), (), ()), HALF)
    found = _recover(decoder, cuts, memory, _text(32), _text(8))
    assert [layer.kept for layer in found.layers] == [True, False, True]
    assert found.layers[1].parameters == 0 and found.layers[1].training is None
