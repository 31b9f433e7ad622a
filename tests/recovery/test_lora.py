# SPDX-License-Identifier: Apache-2.0
"""Adapters on pruned models of every family: where they sit, how they are trained, what merging
leaves."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from prunec.compiler.diagnostics import BuildError
from prunec.compiler.model.checkpoint import Checkpoint
from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.facts import Facts
from prunec.compiler.model.families import FAMILIES
from prunec.compiler.model.folder import facts_from_folder
from prunec.compiler.model.layout import LayerSelection, Layout, free_selection
from prunec.compiler.model.surgery import slice_layer
from prunec.compiler.recovery import training
from prunec.compiler.recovery.lora import (
    Adapters,
    Recovered,
    merge,
    projections,
    recover_lora,
    with_adapters,
)
from prunec.compiler.recovery.objective import DenseStates, Objective, Text, Weights
from prunec.compiler.recovery.schedule import Schedule
from prunec.compiler.recovery.teacher import StoredTeacher, write_distributions
from prunec.compiler.recovery.training import Training
from prunec.compiler.store import Entry
from prunec.exporters import hf  # makes per-layer models known to transformers

MakeModel = Callable[..., Path]
CPU = torch.device("cpu")
SMALL = {"layers": 4, "ffn": 24}
PLAIN = Adapters(rank=4, ranks="uniform", alpha=8.0, dropout=0.0, checkpointing=False)
SCHEDULE = Schedule(
    learning_rate=5e-3,
    warmup=0.1,
    weight_decay=0.0,
    batch_tokens=96,
    epochs=1,
    looks=4,
    patience=9,
    seed=3,
)


class Memory:
    """Keeps the latest state, and dies when it is asked to save once too often."""

    def __init__(self, saves: int | None = None) -> None:
        self.kept: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        self.left = saves

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        return self.kept

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left = None if self.left is None else self.left - 1
        self.kept = {name: t.detach().clone() for name, t in tensors.items()}, dict(facts)


def _pruned(folder: Path, *, uneven: bool = False) -> tuple[Facts, Layout, Any]:
    """A pruned model in memory: thin layers, one without attention, one without MLP."""
    facts = facts_from_folder(folder)
    heads = range(4) if not facts.family.heads_are_units else (0, 1, 3) if uneven else (1, 2)
    selections = [
        free_selection(facts, list(heads), range(0, facts.ffn, 2)),
        LayerSelection((), (), tuple(range(5))),
        free_selection(facts, list(heads), ()),
        free_selection(facts, range(4), range(facts.ffn)),
    ]
    layout = tuple(selection.spec(facts.head_dim) for selection in selections)
    described = hf.model_config(facts, layout, "per_layer", torch.float32)
    config = AutoConfig.for_model(**described)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    checkpoint, family = Checkpoint(folder, facts), facts.family
    names = [family.embedding, family.final_norm] + ([] if facts.tied else [family.head])
    tensors = {name: checkpoint.tensor(name) for name in names}
    for index, selection in enumerate(selections):
        sliced = slice_layer(facts, checkpoint.layer(index), selection)
        tensors |= {family.in_layer(index, name): tensor for name, tensor in sliced.items()}
    model.load_state_dict(tensors, strict=False)
    model.tie_weights()
    if getattr(config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")
    return facts, layout, model.eval()


def _ids(windows: int, length: int = 12, seed: int | None = None) -> Tensor:
    seed = int.from_bytes(os.urandom(4), "big") if seed is None else seed
    return torch.randint(3, 300, (windows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_adapters_sit_on_every_projection_and_merge_into_it_alone(
    tiny_family: MakeModel, model_type: str
) -> None:
    facts, layout, model = _pruned(tiny_family(model_type, **SMALL), uneven=model_type == "llama")
    before = {name: tensor.double() for name, tensor in model.state_dict().items()}
    names = projections(facts, layout)
    adapted = with_adapters(model, facts, names, PLAIN, ranks=[1, 2, 3, 6])
    factors: dict[str, dict[str, Tensor]] = {}
    for name, parameter in adapted.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
            place, _, factor = name.removeprefix("base_model.model.").partition(".lora_")
            factors.setdefault(place, {})[factor[0]] = parameter.detach().double()
    family = facts.family
    wanted = {family.in_layer(i, name) for i, layer in enumerate(names) for name in layer}
    assert {*factors} == wanted
    assert {*names[0]} == {*family.inputs, family.output, family.down}
    assert {*names[1]} == {*family.mlp_projections}
    assert {*names[2]} == {*family.attention_projections}

    ids = _ids(2)
    merged, error = merge(adapted, ids)
    assert error < 1e-4
    after = merged.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        place = name.removesuffix(".weight")
        delta: Tensor | float = 0.0
        if place in factors:
            delta = PLAIN.alpha / PLAIN.rank * factors[place]["B"] @ factors[place]["A"]
            assert (delta != 0).any()
        torch.testing.assert_close(tensor.double(), before[name] + delta, rtol=1e-6, atol=1e-6)


def test_ranks_are_each_layer_own_and_scale_alike(tiny_family: MakeModel) -> None:
    facts, layout, model = _pruned(tiny_family("phi3", **SMALL))
    adapted = with_adapters(model, facts, projections(facts, layout), PLAIN, ranks=[1, 2, 3, 6])
    found = {
        name: (module.r["default"], module.scaling["default"])
        for name, module in adapted.named_modules()
        if hasattr(module, "lora_A")
    }
    assert len(found) == 4 + 2 + 2 + 4
    for name, (rank, scaling) in found.items():
        assert rank == [1, 2, 3, 6][int(name.split(".layers.")[1][0])]
        assert scaling == PLAIN.alpha / PLAIN.rank


def test_a_merge_that_changes_what_the_model_says_is_an_error(tiny_llama: MakeModel) -> None:
    facts, layout, model = _pruned(tiny_llama(**SMALL))
    adapted = with_adapters(model, facts, projections(facts, layout), PLAIN, ranks=[4] * 4)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    unload = adapted.merge_and_unload

    def wrong() -> Any:
        for module in adapted.modules():
            if hasattr(module, "lora_A"):
                module.scaling["default"] *= 1.01
        return unload()

    adapted.merge_and_unload = wrong
    with pytest.raises(BuildError, match="merging the adapters moved a logit"):
        merge(adapted, _ids(2))


def _recover(
    folder: Path,
    entry: Path,
    weights: Weights,
    *,
    adapters: Adapters = PLAIN,
    schedule: Schedule = SCHEDULE,
    memory: Memory | None = None,
    dtype: torch.dtype = torch.float32,
) -> Recovered:
    """Recover the pruned model of a folder on the same text as every other call."""
    facts, layout, model = _pruned(folder)
    decoder = Decoder(Checkpoint(folder, facts), torch.float32, CPU)

    def text(name: str, windows: int) -> Text:
        ids, place = _ids(windows, seed=windows), Entry(entry / name)
        write_distributions(decoder, ids, 40, place)
        return Text(ids, StoredTeacher(place, *ids.shape))

    objective = Objective(weights, DenseStates(decoder) if weights.hidden else None)
    return recover_lora(
        model,
        facts,
        layout,
        adapters,
        schedule,
        objective,
        text("fit", 80),
        text("held-out", 8),
        memory or Memory(),
        CPU,
        dtype,
    )


@pytest.mark.parametrize("model_type", ["llama", "phi3", "gemma2"])
def test_training_lowers_the_loss_that_is_asked_for(
    tiny_family: MakeModel, tmp_path: Path, model_type: str
) -> None:
    folder = tiny_family(model_type, **SMALL)
    found = _recover(folder, tmp_path, Weights(labels=0.0, divergence=1.0, hidden=0.5))
    result = found.result
    assert result.kept and result.after < 0.99 * result.before
    assert result.before == result.points[0].held_out
    assert result.tokens == result.points[-1].tokens == 80 * 12
    assert result.stopped is None and result.merge_error is not None
    assert result.loss == "divergence from the dense model + 0.5 × distance of hidden states"
    # Forward, backward and the dense model; before, four looks and once merged.
    assert found.token_forwards == 4 * result.tokens + 6 * 8 * 12


@pytest.mark.parametrize("saves", [1, 3])
def test_what_was_stopped_and_goes_on_ends_as_what_was_not(
    tiny_llama: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves: int
) -> None:
    folder, weights = tiny_llama(**SMALL), Weights(labels=0.5, divergence=1.0, hidden=0.0)
    adapters = Adapters(rank=4, ranks="importance", alpha=8.0, dropout=0.2, checkpointing=True)
    whole = _recover(folder, tmp_path, weights, adapters=adapters)
    memory = Memory(saves)
    monkeypatch.setattr(training, "SECONDS_BETWEEN_SAVES", 0.0)
    with pytest.raises(KeyboardInterrupt):
        _recover(folder, tmp_path, weights, adapters=adapters, memory=memory)
    memory.left = None
    torch.rand(7)  # other random numbers than the first process had
    resumed = _recover(folder, tmp_path, weights, adapters=adapters, memory=memory)
    assert resumed.result == whole.result
    assert resumed.token_forwards == whole.token_forwards
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("rate", "stopped"),
    [
        (1.0, "no gain in 2 looks at held-out text"),
        (30.0, "the training loss was no finite number"),
    ],
)
def test_training_that_does_harm_stops_and_is_not_kept(
    tiny_llama: MakeModel, tmp_path: Path, rate: float, stopped: str
) -> None:
    absurd = Schedule(rate, 0.0, 0.0, 24, 5, looks=20, patience=2, seed=0)
    weights = Weights(labels=0.0, divergence=0.0, hidden=2.0)
    folder = tiny_llama(**SMALL)
    found = _recover(folder, tmp_path, weights, schedule=absurd).result
    assert not found.kept and found.after == found.before
    assert found.stopped == stopped
    assert found.tokens < 5 * 80 * 12
    assert found.loss == "2 × distance of hidden states"


def test_the_best_look_wins_and_weights_are_those_of_the_dtype(
    tiny_llama: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_looks: list[dict[str, Tensor]] = []
    losses = iter([1.0, 0.8, 0.6, 0.7, 0.9])

    def scripted(self: Training, text: Text) -> float:
        at_looks.append({name: p.detach().clone() for name, p in self.parameters.items()})
        return next(losses)

    monkeypatch.setattr(Training, "held_out_loss", scripted)
    folder, weights = tiny_llama(**SMALL), Weights(labels=0.0, divergence=1.0, hidden=0.0)
    found = _recover(folder, tmp_path, weights, dtype=torch.bfloat16)
    best = {name.partition(".model.")[2]: p.double() for name, p in at_looks[2].items()}
    _, _, model = _pruned(folder)
    place = "model.layers.0.mlp.up_proj"
    a, b = (best[f"{place}.lora_{factor}.default.weight"] for factor in "AB")
    weight = model.get_parameter(f"{place}.weight").double() + 2 * b @ a
    written = found.model.get_parameter(f"{place}.weight")
    assert torch.equal(written, written.bfloat16().float())
    torch.testing.assert_close(written.double(), weight, rtol=2**-8, atol=0)


def test_windows_that_memory_does_not_hold_go_through_it_in_smaller_groups(
    tiny_llama: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, weights = tiny_llama(**SMALL), Weights(labels=0.0, divergence=1.0, hidden=0.0)
    whole = _recover(folder, tmp_path, weights)
    call, sizes = Objective.__call__, []

    def cramped(self: Objective, model: Any, text: Text, windows: Sequence[int]) -> Tensor:
        sizes.append(len(windows))
        if len(windows) > 3:
            raise torch.OutOfMemoryError
        return call(self, model, text, windows)

    monkeypatch.setattr(Objective, "__call__", cramped)
    found = _recover(folder, tmp_path, weights)
    assert max(sizes) > 3 and max(sizes[10:]) <= 3
    for some, others in zip(found.result.points, whole.result.points, strict=True):
        assert some.tokens == others.tokens
        assert some.held_out == pytest.approx(others.held_out, rel=1e-4)


def test_every_epoch_takes_every_window_once_and_rates_rise_and_fall() -> None:
    schedule = Schedule(1.0, 0.2, 0.0, batch_tokens=40, epochs=3, looks=4, patience=1, seed=1)
    steps = schedule.steps(windows=11, length=10)
    assert steps == 9
    batches = [schedule.batch(step, 11, 10) for step in range(steps)]
    epochs = [[*chain(*batches[start : start + 3])] for start in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    rates = [schedule.rate(step, steps) for step in range(steps)]
    assert rates[:3] == [1 / 3, 2 / 3, 1.0]
    assert rates[2:] == sorted(rates[2:], reverse=True) and 0 < rates[-1] < 0.1
    assert schedule.looks_after(steps) == {2, 4, 7, 9}
    assert schedule.batch_windows(length=1000) == 1
