# SPDX-License-Identifier: Apache-2.0
"""What is paged out comes back bit for bit, within the bytes that the file may have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prunec.compiler.model.layout import LayerSpec
from prunec.compiler.search.cuts import CutFile, Key

ROOM = 4096


def _key(number: int) -> Key:
    return number, LayerSpec(2, 1, 8, 0)


def _sublayer(number: int) -> dict[str, Tensor]:
    """Tensors of several types, 900 bytes of them at most; none of a sublayer that is absent."""
    rows = number % 7
    return (
        {}
        if rows == 0
        else {
            "odd": torch.randn(rows, 9, dtype=torch.bfloat16),
            "transposed": torch.randn(31, rows).T.contiguous(),
            "one": torch.randn(1, dtype=torch.float64),
        }
    )


@pytest.mark.parametrize("seed", [int(os.environ["PRUNEC_TEST_SEED"])], ids="seed {}".format)
def test_a_file_gives_back_what_was_used_last(tmp_path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    file, written = CutFile(ROOM, tmp_path), {n: _sublayer(n) for n in range(12)}
    latest: list[int] = []
    for number in torch.randint(0, 12, (300,)).tolist():
        found = file.read(_key(number))
        if found is None:
            file.write(_key(number), written[number])
            found = file.read(_key(number))
        assert found is not None and found.keys() == written[number].keys()
        for name, tensor in found.items():
            assert torch.equal(tensor, written[number][name])
            assert tensor.dtype == written[number][name].dtype
        latest = [number, *(other for other in latest if other != number)]
        # One leaves room for another, wherever it lies.
        assert all(file.read(_key(other)) is not None for other in reversed(latest[:2]))
    assert not list(tmp_path.iterdir())  # it has no name


def test_a_sublayer_that_is_larger_than_the_file_stays_out(tmp_path: Path) -> None:
    file = CutFile(100, tmp_path)
    file.write(_key(0), {"weight": torch.ones(25)})
    file.write(_key(1), {"weight": torch.ones(26)})
    assert file.read(_key(0)) is not None and file.read(_key(1)) is None
