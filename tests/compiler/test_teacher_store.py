# SPDX-License-Identifier: Apache-2.0
"""Distributions that are read from files are those that were made, for whatever windows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunec.compiler import teacher_store
from prunec.compiler.search.divergence import TeacherDistributions, divergence
from prunec.compiler.store import Entry, LostResultError
from prunec.compiler.teacher_store import StoredTeacher, chunks, has_chunk, save_chunk

CPU, IDS, TOP_K = torch.device("cpu"), torch.zeros(7, 5, dtype=torch.long), 4


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Entry, TeacherDistributions]:
    """Seven windows in chunks of three, each of which was made in parts."""
    monkeypatch.setattr(teacher_store, "CHUNK_BYTES", 3 * 5 * (8 * TOP_K + 4))
    whole = TeacherDistributions.from_logits(torch.randn(7, 5, 11), TOP_K)
    entry = Entry(tmp_path / "teacher")
    for number, chunk in enumerate(chunks(IDS, TOP_K)):
        save_chunk(entry, number, [whole[i : i + 1] for i in range(chunk.start, chunk.stop)])
    return entry, whole


def test_a_teacher_read_from_files_equals_the_one_in_memory(
    made: tuple[Entry, TeacherDistributions],
) -> None:
    entry, whole = made
    stored = StoredTeacher(entry, chunks(IDS, TOP_K), CPU)
    assert len(list(entry.folder.iterdir())) == 3
    for start in range(7):
        for stop in range(start + 1, 8):
            logits, windows = torch.randn(stop - start, 5, 11), slice(start, stop)
            expected = divergence(whole[windows], logits)
            assert torch.equal(divergence(stored[windows], logits), expected)
    scattered, logits = torch.tensor([5, 0, 4]), torch.randn(3, 5, 11)
    expected = divergence(whole[scattered], logits)
    assert torch.equal(divergence(stored[scattered], logits), expected)
    everything = stored[:]
    assert torch.equal(everything.ids, whole.ids) and everything.ids.dtype == torch.int32
    assert torch.equal(everything.log_tail, whole.log_tail)


def test_a_damaged_chunk_is_missed_and_the_others_stay(
    made: tuple[Entry, TeacherDistributions],
) -> None:
    entry, _ = made
    path = entry.tensor_file("teacher-0001")
    assert path is not None
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(LostResultError):
        StoredTeacher(entry, chunks(IDS, TOP_K), CPU)
    assert [has_chunk(entry, number) for number in range(3)] == [True, False, True]
