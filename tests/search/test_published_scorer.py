# SPDX-License-Identifier: Apache-2.0
"""Scores of the published search are held against transformers' Llama with zeros written in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from prunec.compiler.model.checkpoint import Checkpoint
from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.folder import facts_from_folder
from prunec.compiler.passes.published import LayerLevels, LayerSizes, build_levels
from prunec.compiler.search import published_scorer
from prunec.compiler.search.divergence import TeacherDistributions
from prunec.compiler.search.published import Levels
from prunec.compiler.search.published_scorer import PublishedScorer

DIM, VOCAB, TOP_K = 8, 300, 40


class Memory:
    def __init__(self) -> None:
        self.layers: list[LayerLevels] = []

    def load(self, index: int) -> LayerLevels | None:
        return None

    def save(self, index: int, levels: LayerLevels) -> None:
        self.layers.append(levels)


@torch.no_grad()
def test_scores_are_those_of_the_zero_filled_model(
    tiny_llama: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_llama(layers=2, hidden=48, query_heads=6, kv_heads=2, head_dim=DIM, ffn=24)
    checkpoint = Checkpoint(folder, facts_from_folder(folder))
    decoder = Decoder(checkpoint, torch.float32, torch.device("cpu"))
    torch.manual_seed(0)
    memory = Memory()
    sizes = [LayerSizes({0: 3, -1: 5, 1: 1, 2: 0}, {0: 12, -1: 20, 1: 0})] * 2
    build_levels(
        decoder,
        torch.randint(0, VOCAB, (6, 32)),
        sizes,
        memory,
        damping=0.01,
        accumulation="centre",
    )
    ids = torch.randint(0, VOCAB, (5, 12))
    dense = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(ids).logits
    teacher = TeacherDistributions.from_logits(dense, TOP_K)
    scorer = PublishedScorer(decoder, memory.layers, ids, teacher)
    assert scorer.grid == [{0: 3, -1: 5, 1: 1, 2: 0}] * 2 + [{0: 12, -1: 20, 1: 0}] * 2

    def expected(levels: Levels, windows: slice) -> float:
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for index, layer in enumerate(model.model.layers):
            for last, level, width in (
                (layer.self_attn.o_proj, memory.layers[index].attention[levels[index]], DIM),
                (layer.mlp.down_proj, memory.layers[index].mlp[levels[2 + index]], 1),
            ):
                last.weight.zero_()
                columns = [unit * width + i for unit in level.units for i in range(width)]
                last.weight[:, columns] = level.weight
        ids_seen = teacher.ids[windows].long()
        p = dense[windows].double().gather(-1, ids_seen).log_softmax(dim=-1)
        q = model(ids[windows]).logits.double().gather(-1, ids_seen).log_softmax(dim=-1)
        return float((p.exp() * (p - q)).sum(dim=-1).mean())

    kept = [memory.layers[0].attention[number].units for number in (0, -1, 1)]
    assert any(
        len({sum(head // 3 == group for head in heads) for group in (0, 1)}) > 1 for heads in kept
    )
    tried: list[Levels] = [(0, 0, 0, 0), (-1, 1, 1, -1), (2, 0, -1, 1), (1, -1, 0, 0)]
    spent = 0
    # Where only one sublayer fits the cache, it is cut again and again.
    for cache_bytes in (published_scorer.CACHE_BYTES, 1):
        monkeypatch.setattr(published_scorer, "CACHE_BYTES", cache_bytes)
        for levels in tried:
            for windows in (slice(0, 5), slice(1, 3)):
                found = scorer.divergence(levels, windows)
                assert found == pytest.approx(expected(levels, windows), rel=1e-4)
                spent += 12 * (windows.stop - windows.start)
    assert scorer.token_forwards == spent
