# SPDX-License-Identifier: Apache-2.0
"""Losses and stored distributions, held against float64 sums over the whole vocabulary."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from prunec.compiler.model.checkpoint import Checkpoint
from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.folder import facts_from_folder
from prunec.compiler.recovery import teacher as teacher_module
from prunec.compiler.recovery.objective import DenseStates, Objective, Text, Weights
from prunec.compiler.recovery.ranks import angular_scores, ranks_by_importance
from prunec.compiler.recovery.sizes import distribution_bytes
from prunec.compiler.recovery.teacher import StoredTeacher, write_distributions
from prunec.compiler.store import Entry, LostResultError

MakeModel = Callable[..., Path]
SMALL = {"layers": 3, "hidden": 32, "head_dim": 8, "ffn": 24}


@pytest.fixture(autouse=True, params=[int(os.environ["PRUNEC_TEST_SEED"])], ids="seed {}".format)
def _fresh_numbers(request: pytest.FixtureRequest) -> None:
    torch.manual_seed(request.param)


def _decoder(folder: Path) -> Decoder:
    return Decoder(
        Checkpoint(folder, facts_from_folder(folder)), torch.float32, torch.device("cpu")
    )


def _stock(folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    if getattr(model.config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")
    return model


def _states(model: Any, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits, and hidden states before the first and behind every layer."""
    states: list[Tensor] = []

    def note(_module: Any, args: Any, output: Any) -> None:
        if not states:
            states.append(args[0])
        states.append(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_hook(note) for layer in model.model.layers]
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return logits, states


@torch.no_grad()
def _seen(model: Any, ids: Tensor) -> tuple[np.ndarray, list[np.ndarray]]:
    """Log-probabilities and `_states`, as numbers."""
    found, states = _states(model, ids)
    logits = found.double().numpy()
    logits = logits - logits.max(axis=-1, keepdims=True)
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return log_probs, [state.double().numpy() for state in states]


def _coarse(log_probs: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Probabilities of some tokens and of all others together."""
    some = np.take_along_axis(np.exp(log_probs), ids, axis=-1)
    return np.concatenate([some, 1 - some.sum(axis=-1, keepdims=True)], axis=-1)


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
@pytest.mark.parametrize("top_k", [20, 300])
def test_the_loss_is_the_sum_of_its_terms(
    tiny_family: MakeModel, tmp_path: Path, model_type: str, top_k: int
) -> None:
    folder, other = tiny_family(model_type, **SMALL), tiny_family(model_type, seed=1, **SMALL)
    ids, decoder = torch.randint(3, 300, (5, 11)), _decoder(folder)
    write_distributions(decoder, ids, top_k, Entry(tmp_path))
    text = Text(ids, StoredTeacher(Entry(tmp_path), *ids.shape))
    chosen = [3, 0]
    dense, dense_states = _seen(_stock(folder), ids[chosen])
    given, given_states = _seen(_stock(other), ids[chosen])

    labels = -np.take_along_axis(given[:, :-1], ids[chosen][:, 1:, None].numpy(), axis=-1)
    top = np.argsort(-dense, axis=-1)[..., :top_k]
    p, q = _coarse(dense, top), _coarse(given, top)
    if top_k == 300:
        p, q = p[..., :-1], q[..., :-1]
    divergence = (p * np.log(p / q)).sum(axis=-1).mean(axis=-1)
    hidden = np.mean(
        [
            ((ours - theirs) ** 2).mean(axis=(1, 2)) / (theirs**2).mean(axis=(1, 2))
            for ours, theirs in zip(given_states[1:], dense_states[1:], strict=True)
        ],
        axis=0,
    )
    model = _stock(other).float()
    for weights, wanted in [
        (Weights(1.0, 0.0, 0.0), labels.mean(axis=(1, 2))),
        (Weights(0.0, 1.0, 0.0), divergence),
        (Weights(0.0, 0.0, 1.0), hidden),
        (Weights(0.5, 2.0, 3.0), 0.5 * labels.mean(axis=(1, 2)) + 2 * divergence + 3 * hidden),
    ]:
        loss = Objective(weights, DenseStates(decoder))(model, text, chosen)
        np.testing.assert_allclose(loss.detach().numpy(), wanted, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_hidden_states_lead_back_to_every_layer(
    tiny_llama: MakeModel, checkpointing: bool
) -> None:
    """Gradients are those of float64 autograd, with activations kept or computed twice."""
    folder, other = tiny_llama(**SMALL), tiny_llama(seed=1, **SMALL)
    ids = torch.randint(3, 300, (2, 9))
    _, wanted = _seen(_stock(folder), ids)
    model, reference = _stock(other).float(), _stock(other)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    text = Text(ids, None)
    Objective(Weights(0.0, 0.0, 1.0), DenseStates(_decoder(folder)))(
        model, text, [0, 1]
    ).sum().backward()

    _, states = _states(reference, ids)
    total = torch.zeros((), dtype=torch.float64)
    for ours, theirs in zip(states[1:], wanted[1:], strict=True):
        target = torch.from_numpy(theirs)
        distance = (ours - target).square().mean(dim=(1, 2))
        total = total + (distance / target.square().mean(dim=(1, 2))).sum() / 3
    total.backward()
    exact = dict(reference.model.layers.named_parameters())
    for name, parameter in model.model.layers.named_parameters():
        assert parameter.grad is not None, name
        scale = exact[name].grad.abs().max().item()
        torch.testing.assert_close(
            parameter.grad.double(), exact[name].grad, rtol=1e-3, atol=1e-4 * scale, msg=name
        )


def test_distributions_are_kept_in_parts_and_read_in_any_order(
    tiny_llama: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_module, "PART_TOKENS", 25)
    ids, decoder, entry = (
        torch.randint(3, 300, (5, 12)),
        _decoder(tiny_llama(**SMALL)),
        Entry(tmp_path),
    )
    done: list[int] = []

    def stop_early(tokens: int) -> None:
        done.append(tokens)
        if tokens == 48:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_distributions(decoder, ids, 30, entry, stop_early)
    first = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(first) == 2
    with pytest.raises(LostResultError):
        StoredTeacher(entry, *ids.shape)
    write_distributions(decoder, ids, 30, entry)
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(files) == 3 and files.items() >= first.items()

    found = StoredTeacher(entry, *ids.shape).read([4, 1, 2])
    exact, _ = _seen(_stock(tiny_llama(**SMALL)), ids[[4, 1, 2]])
    top = found.ids.long().numpy()
    wanted = np.take_along_axis(exact, top, axis=-1)
    np.testing.assert_allclose(found.log_probs.numpy(), wanted, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(np.sort(top), np.sort(np.argsort(-exact, axis=-1)[..., :30]))
    np.testing.assert_allclose(
        np.exp(found.log_tail.numpy()), _coarse(exact, top)[..., -1], rtol=1e-3
    )


def test_what_is_stored_takes_the_bytes_that_are_planned(
    tiny_llama: MakeModel, tmp_path: Path
) -> None:
    ids = torch.randint(3, 300, (8, 30))
    write_distributions(_decoder(tiny_llama(**SMALL)), ids, 30, Entry(tmp_path))
    written = sum(path.stat().st_size for path in tmp_path.iterdir())
    planned = distribution_bytes(ids.numel(), 30, 300)
    assert planned < written < planned + 1000


def test_ranks_follow_the_angles_by_which_layers_turn(tiny_llama: MakeModel) -> None:
    model, ids = _stock(tiny_llama(**SMALL)).float(), torch.randint(3, 300, (3, 14))
    _, states = _seen(_stock(tiny_llama(**SMALL)), ids)
    wanted = []
    for before, behind in pairwise(states):
        cosines = (before * behind).sum(axis=-1) / np.sqrt(
            (before**2).sum(axis=-1) * (behind**2).sum(axis=-1)
        )
        wanted.append(float(np.arccos(cosines).mean() / np.pi))
    assert angular_scores(model, ids) == pytest.approx(wanted, rel=1e-4)


def test_ranks_keep_their_mean_and_none_is_zero() -> None:
    assert ranks_by_importance(8, [0.1, 0.1, 0.1]) == [8, 8, 8]
    assert ranks_by_importance(8, [0.3, 0.1, 0.2]) == [12, 4, 8]
    assert ranks_by_importance(2, [1.0, 0.01, 0.0]) == [6, 1, 1]
    assert ranks_by_importance(5, [0.0, 0.0]) == [5, 5]
    importance = torch.rand(30).tolist()
    assert abs(sum(ranks_by_importance(16, importance)) - 16 * 30) <= 30
