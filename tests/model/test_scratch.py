# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunec.compiler.model import scratch as scratch_module
from prunec.compiler.model.placement import Placement
from prunec.compiler.model.scratch import FileTensor
from prunec.compiler.model.states import HiddenStates


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int32])
def test_a_tensor_in_a_file_is_read_and_written_as_one_in_memory(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch_module, "_CALL_BYTES", 50)  # no slice is moved by one call
    held, filed = torch.zeros(9, 3, 7, dtype=dtype), FileTensor((9, 3, 7), dtype, tmp_path)
    for rows in (slice(2, 5), slice(0, 1), slice(7, 40), slice(4, 4), slice(-3, None)):
        values = (100 * torch.randn(held[rows].shape)).to(dtype)
        held[rows] = values
        filed[rows] = values
        assert torch.equal(filed[:], held)
        assert torch.equal(filed[rows], held[rows])
    filed[1:4] = torch.ones(7)  # of another dtype, spread out, as into a tensor
    held[1:4] = torch.ones(7)
    assert torch.equal(filed[:], held)


def test_scratch_files_have_no_name_that_could_be_left_behind(tmp_path: Path) -> None:
    filed = FileTensor((4, 1000), torch.float32, tmp_path / "scratch")
    filed[:] = torch.ones(4, 1000)
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize("where", [{}, {"states_on_host": True}, {"states_in_file": True}], ids=str)
def test_hidden_states_are_the_same_wherever_they_lie(
    tmp_path: Path, where: dict[str, bool]
) -> None:
    placement = Placement(scratch=tmp_path, **where)
    states = HiddenStates((5, 3, 4), torch.float32, torch.device("cpu"), placement)
    values = torch.randn(5, 3, 4)
    states[0:2], states[2:9] = values[:2], values[2:]
    copy = states.clone()
    states[1:2] = torch.zeros(3, 4)
    assert torch.equal(copy[0:5], values)
    assert torch.equal(copy[torch.tensor([4, 0, 4])], values[[4, 0, 4]])
    assert torch.equal(states[1:3], torch.stack([torch.zeros(3, 4), values[2]]))
    states[torch.tensor([3, 0])] = values[:2]
    assert torch.equal(states[torch.tensor([0, 3])], values[[1, 0]])
