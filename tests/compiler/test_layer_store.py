# SPDX-License-Identifier: Apache-2.0
"""Layers of a supernet come back from the store at every size, and are read no further."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from prunec.compiler.layer_store import load_nested, save_nested
from prunec.compiler.passes.eliminate import HeadPath
from prunec.compiler.passes.least_squares import NestedSolution, NormalEquations
from prunec.compiler.passes.nested import NestedAttention, NestedLayer, NestedMLP
from prunec.compiler.store import Entry, LostResultError
from prunec.compiler.stored_tensor import StoredTensor

CPU = torch.device("cpu")
WIDTH = 1100  # more rows than are worked on together


def _solution(size: int) -> NestedSolution:
    inputs = torch.randn(2 * size, size, dtype=torch.float64)
    problem = NormalEquations.of(
        inputs.T @ inputs, torch.randn(size, 5, dtype=torch.float64) * size
    )
    return NestedSolution.solve(problem, torch.randperm(size))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[NestedLayer, Entry]:
    attention = _solution(16)
    path = HeadPath((((0, 1), (0,)), ((1,), (0,)), ((), ())), attention.order)
    nested = NestedLayer(NestedAttention(8, path, attention, 2.0), NestedMLP(_solution(WIDTH), 3.0))
    entry = Entry(tmp_path_factory.mktemp("store") / "supernet")
    save_nested(entry, 0, nested)
    return nested, entry


def test_a_stored_layer_is_solved_for_at_every_size(saved: tuple[NestedLayer, Entry]) -> None:
    nested, entry = saved
    loaded = load_nested(entry, 0, CPU)
    assert loaded.attention.path.states == nested.attention.path.states
    assert (loaded.attention.stream_energy, loaded.mlp.stream_energy) == (2.0, 3.0)
    # The smallest and the largest, and those around where one block of rows becomes two.
    for size in (0, 1, 700, 1023, 1024, 1025, WIDTH):
        inputs, weights = nested.mlp.solution.weight(size)
        found, solved = loaded.mlp.solution.weight(size)
        assert torch.equal(found, inputs)
        torch.testing.assert_close(solved, weights.float(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        loaded.mlp.solution.excess_errors(),
        nested.mlp.solution.excess_errors().float(),
        rtol=1e-4,
        atol=1e-4,
    )


def test_a_layer_in_its_file_is_solved_for_as_one_in_memory(
    saved: tuple[NestedLayer, Entry],
) -> None:
    stored = load_nested(saved[1], 0, CPU).mlp.solution
    assert isinstance(stored.factor, StoredTensor)
    held = NestedSolution(stored.order, stored.factor[:], stored.projected[:])
    for size in (3, 1024, WIDTH):
        assert torch.equal(stored.weight(size)[1], held.weight(size)[1])
    assert torch.equal(stored.excess_errors(), held.excess_errors())


def test_a_layer_is_read_though_its_file_is_gone_and_never_if_it_was_damaged(
    saved: tuple[NestedLayer, Entry], tmp_path: Path
) -> None:
    entry = Entry(tmp_path / "copy")
    shutil.copytree(saved[1].folder, entry.folder)
    [path] = entry.folder.iterdir()
    loaded, content = load_nested(entry, 0, CPU), bytearray(path.read_bytes())
    path.unlink()
    assert loaded.mlp.solution.weight(5)[1].shape == (5, 5)
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(LostResultError):
        load_nested(entry, 0, CPU)


def test_a_file_that_became_shorter_gives_no_numbers(
    saved: tuple[NestedLayer, Entry], tmp_path: Path
) -> None:
    entry = Entry(tmp_path / "copy")
    shutil.copytree(saved[1].folder, entry.folder)
    loaded = load_nested(entry, 0, CPU)
    [path] = entry.folder.iterdir()
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size // 4)
    with pytest.raises(OSError, match="shorter than it was"):
        loaded.mlp.solution.weight(WIDTH)
