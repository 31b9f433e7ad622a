# SPDX-License-Identifier: Apache-2.0
"""The published local solver, against numbers worked out by hand and a plain float64 reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, tensor
from transformers import LlamaForCausalLM

from prunec.compiler.model.checkpoint import Checkpoint
from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.folder import facts_from_folder
from prunec.compiler.passes.published import (
    LayerLevels,
    LayerSizes,
    Level,
    LocalProblem,
    accumulated,
    build_levels,
    local_problem,
    remove,
    solve_level,
    solve_widths,
    unit_scores,
)

ONE_OUTPUT = tensor([[1.0], [-3.0], [2.0]], dtype=torch.float64)
GRAM = tensor([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


def problem_of(gram: Tensor, weight: Tensor) -> LocalProblem:
    """Without damping."""
    return LocalProblem(gram, torch.linalg.inv(gram), weight, gram @ weight)


def test_scores_updates_and_refits_are_those_worked_out_by_hand() -> None:
    problem = problem_of(GRAM, ONE_OUTPUT)
    # H⁻¹ has 2/3, 2/3, 1 on its diagonal, G is −1, −5, 2. The first term may be negative.
    assert problem.target.flatten().tolist() == [-1, -5, 2]
    scores = unit_scores(problem.weight, problem.inverse, problem.target, torch.arange(3), 1)
    assert scores.tolist() == pytest.approx([0.75 - 1, 6.75 + 15, 2 + 4])
    # Without the first input, the second makes up for it by −3 + 1/3 · 3/2 · 1.
    weight, inverse = problem.weight.clone(), problem.inverse.clone()
    remove(weight, inverse, tensor([0]))
    assert weight.flatten().tolist() == pytest.approx([0, -2.5, 2])
    assert inverse.flatten().tolist() == pytest.approx([0, 0, 0, 0, 0.5, 0, 0, 0, 1])
    scores = unit_scores(weight, inverse, problem.target, tensor([1, 2]), 1)
    assert scores.tolist() == pytest.approx([6.25 + 12.5, 2 + 4])
    units, rows = solve_level(problem, 2, width=1, rounds=16)
    assert units == (1, 2) and rows.flatten().tolist() == pytest.approx([-2.5, 2])
    units, rows = solve_level(problem, 1, width=1, rounds=16)
    assert units == (1,) and rows.flatten().tolist() == pytest.approx([-2.5])


def test_a_head_costs_what_its_whole_block_costs() -> None:
    gram = torch.eye(4, dtype=torch.float64)
    gram[:2, :2] = GRAM[:2, :2]
    problem = problem_of(gram, tensor([[1.0], [-3.0], [2.0], [1.0]], dtype=torch.float64))
    # ½ (2·1 − 2·3 + 2·9) + (−1 + 15), and ½ (4 + 1) + (4 + 1)
    scores = unit_scores(problem.weight, problem.inverse, problem.target, torch.arange(2), 2)
    assert scores.tolist() == pytest.approx([21, 7.5])
    assert solve_level(problem, 1, width=2, rounds=1)[0] == (0,)


def reference(
    problem: LocalProblem, keep: int, width: int, rounds: int
) -> tuple[tuple[int, ...], Tensor]:
    """Everything anew from what is left, in every round."""
    gram, target = problem.gram, problem.target
    count = len(gram) // width
    alive, weight = list(range(count)), problem.weight

    def columns(units: list[int]) -> list[int]:
        return [unit * width + i for unit in units for i in range(width)]

    for number in range(1, rounds + 1):
        left = columns(alive)
        inverse = torch.linalg.inv(gram[left][:, left])
        weight = inverse @ target[left]
        scores = {}
        for place, unit in enumerate(alive):
            own = columns([place])
            w, block = weight[own], torch.linalg.inv(inverse[own][:, own])
            scores[unit] = float(torch.trace(w.T @ block @ w) / 2 + (w * target[left][own]).sum())
        wanted = count - (count - keep) * number // rounds
        dropped = sorted(alive, key=scores.__getitem__)[: len(alive) - wanted]
        alive = [unit for unit in alive if unit not in dropped]
    left = columns(alive)
    return tuple(alive), torch.linalg.inv(gram[left][:, left]) @ target[left]


@pytest.mark.parametrize(
    ("units", "width", "rounds"), [(37, 1, 16), (12, 1, 16), (9, 4, 1), (9, 4, 3)]
)
def test_a_level_is_what_plain_algebra_gives(units: int, width: int, rounds: int) -> None:
    generator = torch.Generator().manual_seed(units + rounds)
    size = units * width
    inputs = torch.randn(300, size, generator=generator).double()
    inputs = inputs @ torch.randn(size, size, generator=generator).double()
    weight = torch.randn(size, 5, generator=generator).double()
    problem = local_problem(inputs.T @ inputs, weight, 0.01)
    for keep in (1, units // 3, units - 2, units):
        expected, expected_rows = reference(problem, keep, width, rounds)
        found, rows = solve_level(problem, keep, width=width, rounds=rounds)
        assert found == expected
        torch.testing.assert_close(rows, expected_rows)
    torch.testing.assert_close(rows, weight)  # nothing pruned: damping has not moved it
    assert solve_level(problem, 0, width=width, rounds=rounds)[0] == ()


def test_damping_is_a_share_of_the_mean_diagonal_and_dead_inputs_have_no_weight() -> None:
    gram = torch.diag(tensor([3.0, 0.0, 1.0], dtype=torch.float64))
    problem = local_problem(gram, ONE_OUTPUT, 0.3)
    assert problem.gram.diagonal().tolist() == pytest.approx([3.4, 0.4, 1.4])
    assert problem.weight.flatten().tolist() == [1, 0, 2]
    assert problem.target.flatten().tolist() == pytest.approx([3.4, 0, 2.8])
    assert solve_level(problem, 2, width=1, rounds=16)[0] == (0, 2)
    nothing = local_problem(torch.zeros(3, 3), ONE_OUTPUT, 0.01)
    assert not solve_level(nothing, 2, width=1, rounds=16)[1].any()
    with pytest.raises(ModelError, match="NaN"):
        local_problem(gram * torch.nan, ONE_OUTPUT, 0.3)


def test_levels_are_averaged_by_what_they_keep() -> None:
    levels = {
        0: Level((1,), tensor([[6.0]])),
        -1: Level((0, 1), tensor([[2.0, 4.0]])),
        1: Level((), torch.zeros(1, 0)),
    }
    dense = torch.zeros(1, 2)
    # Shares ½, 1 and 0: (½ · (0, 6) + 1 · (2, 4)) / 1½.
    mean = accumulated(levels, dense, "weighted_mean")
    torch.testing.assert_close(mean, tensor([[4 / 3, 14 / 3]]))
    assert accumulated(levels, dense, "centre").tolist() == [[0, 6]]
    heads = {0: Level((1,), tensor([[5.0, 7.0]]))}  # a head is two wide here
    assert accumulated(heads, torch.zeros(1, 4), "weighted_mean").tolist() == [[0, 0, 5, 7]]
    assert not accumulated({0: levels[1]}, dense, "weighted_mean").any()


class Memory:
    """Layers by index, some of them there from the start."""

    def __init__(self, layers: dict[int, LayerLevels] | None = None) -> None:
        self.layers = dict(layers or {})
        self.saved: list[int] = []

    def load(self, index: int) -> LayerLevels | None:
        return self.layers.get(index)

    def save(self, index: int, levels: LayerLevels) -> None:
        self.layers[index] = levels
        self.saved.append(index)


SIZES = [LayerSizes({0: 2, -1: 3, 1: 1, 2: 0}, {0: 12, -1: 20, 1: 4})] * 3
HOW: dict[str, Any] = {"damping": 0.01, "accumulation": "weighted_mean"}


@pytest.fixture(scope="module")
def folder(tiny_llama: Callable[..., Path]) -> Path:
    return tiny_llama(layers=3, hidden=32, head_dim=8, ffn=24)


@pytest.fixture(scope="module")
def decoder(folder: Path) -> Decoder:
    checkpoint = Checkpoint(folder, facts_from_folder(folder))
    return Decoder(checkpoint, torch.float32, torch.device("cpu"))


IDS = torch.arange(480).reshape(12, 40) * 7 % 300


@pytest.mark.parametrize("accumulation", ["centre", "weighted_mean"])
@torch.no_grad()
def test_both_grams_come_from_one_pass_through_the_dense_layer(
    accumulation: Any, folder: Path, decoder: Decoder
) -> None:
    memory = Memory()
    build_levels(decoder, IDS, SIZES, memory, damping=0.01, accumulation=accumulation)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    layer = model.model.layers[0]
    for last, levels in (
        (layer.self_attn.o_proj, memory.layers[0].attention),
        (layer.mlp.down_proj, memory.layers[0].mlp),
    ):
        dense, width = last.weight.clone(), 8 if last is layer.self_attn.o_proj else 1
        total, weights = torch.zeros_like(dense), 0.0
        for number, level in levels.items():
            if accumulation == "centre" and number:
                continue
            share = len(level.units) * width / dense.shape[1]
            for place, unit in enumerate(level.units):
                columns = level.weight[:, place * width : (place + 1) * width]
                total[:, unit * width : (unit + 1) * width] += share * columns
            weights += share
        last.weight.copy_(total / weights)
    # The second layer stays dense while its inputs are looked at, those of its MLP too.
    seen: dict[str, Tensor] = {}
    second = model.model.layers[1]
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        second.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen.update({name: args[0].flatten(0, 1).double()})
        )
    model(IDS)
    for name, levels, width, rounds in (
        ("self_attn.o_proj", memory.layers[1].attention, 8, 1),
        ("mlp.down_proj", memory.layers[1].mlp, 1, 16),
    ):
        weight = second.get_submodule(name).weight.T
        problem = local_problem(seen[name].T @ seen[name], weight, 0.01)
        for level in levels.values():
            units, rows = solve_level(problem, len(level.units), width=width, rounds=rounds)
            assert units == level.units
            torch.testing.assert_close(level.weight.T, rows.float(), atol=1e-4, rtol=1e-4)


def test_a_walk_that_was_stopped_goes_on_to_the_same_levels(decoder: Decoder) -> None:
    whole = Memory()
    build_levels(decoder, IDS, SIZES, whole, **HOW)
    rest = Memory({0: whole.layers[0], 1: whole.layers[1]})
    build_levels(decoder, IDS, SIZES, rest, **HOW)
    assert rest.saved == [2]
    for one, other in (
        (whole.layers[2].attention, rest.layers[2].attention),
        (whole.layers[2].mlp, rest.layers[2].mlp),
    ):
        assert list(one) == list(other)
        for number, level in one.items():
            assert level.units == other[number].units
            assert torch.equal(level.weight, other[number].weight)


def test_another_width_is_solved_as_if_it_had_been_a_level(decoder: Decoder) -> None:
    whole = Memory()
    build_levels(decoder, IDS, SIZES, whole, **HOW)
    solved = dict(solve_widths(decoder, IDS, whole.layers.__getitem__, {0: 4, 2: 20}, **HOW))
    assert set(solved) == {0, 2}
    for index, number in ((0, 1), (2, -1)):
        level = whole.layers[index].mlp[number]
        assert solved[index].units == level.units
        assert torch.equal(solved[index].weight, level.weight)
