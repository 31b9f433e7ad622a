# SPDX-License-Identifier: Apache-2.0
"""The dense model's distributions: those of transformers' model, wherever they are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from transformers import LlamaForCausalLM

from prunec.compiler import teacher_store
from prunec.compiler.model import decoder as decoder_module
from prunec.compiler.model.checkpoint import Checkpoint
from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.folder import facts_from_folder
from prunec.compiler.model.placement import ROOMY, Placement
from prunec.compiler.plan import Step
from prunec.compiler.steps.context import Context
from prunec.compiler.steps.teacher import run_teacher
from prunec.compiler.store import Entry
from prunec.compiler.teacher_store import StoredTeacher, chunks

CPU, TOP_K = torch.device("cpu"), 8


def _run(folder: Path, placement: Placement, ids: torch.Tensor, entry: Entry) -> None:
    decoder = Decoder(Checkpoint(folder, facts_from_folder(folder)), torch.float32, CPU, placement)
    context = SimpleNamespace(decoder=decoder, ids=lambda step: ids)
    step = SimpleNamespace(params={"top_k": TOP_K})
    run_teacher(cast(Context, context), cast(Step, step), entry, lambda done, of, note: None)


def test_a_teacher_is_the_same_from_files_and_after_a_chunk_was_lost(
    tiny_llama: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_store, "CHUNK_BYTES", 2 * 16 * (8 * TOP_K + 4))  # two windows
    monkeypatch.setattr(decoder_module, "LOGIT_BYTES", 1)
    folder, ids = tiny_llama(), torch.randint(0, 300, (5, 16))
    held, paged = Entry(tmp_path / "held"), Entry(tmp_path / "paged")
    in_file = Placement(states_in_file=True, vocabulary_stays=False, scratch=tmp_path / "scratch")
    _run(folder, ROOMY, ids, held)
    _run(folder, in_file, ids, paged)
    # Digests are in the names.
    names = {path.name for path in held.folder.iterdir()}
    assert {path.name for path in paged.folder.iterdir()} == names and len(names) == 3
    [lost] = paged.folder.glob("teacher-0001.*")
    [kept] = paged.folder.glob("teacher-0000.*")
    lost.write_bytes(lost.read_bytes()[:-1] + b"?")
    before = kept.stat().st_mtime_ns
    _run(folder, in_file, ids, paged)
    assert {path.name for path in paged.folder.iterdir()} == names
    assert kept.stat().st_mtime_ns == before
    with torch.no_grad():
        logits = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64)(ids).logits
    found = StoredTeacher(held, chunks(ids, TOP_K), CPU)[:]
    expected = logits.log_softmax(dim=-1).gather(-1, found.ids.long())
    torch.testing.assert_close(found.log_probs.double(), expected, rtol=0, atol=1e-4)
    best = logits.log_softmax(dim=-1).topk(TOP_K).values
    torch.testing.assert_close(expected, best, rtol=0, atol=1e-4)
