# SPDX-License-Identifier: Apache-2.0
"""Scores are held against transformers' Llama with masked and refitted weights, in float64."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from prunec.compiler.model.checkpoint import Checkpoint
from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.folder import facts_from_folder
from prunec.compiler.model.layout import LayerSpec, Layout, dense_layout
from prunec.compiler.model.placement import Placement
from prunec.compiler.passes.least_squares import NestedSolution
from prunec.compiler.passes.nested import CutLayer, NestedLayer
from prunec.compiler.passes.sequential import Solver, prune_sequentially
from prunec.compiler.search.divergence import TeacherDistributions
from prunec.compiler.search.evaluator import Evaluator

DIM, FFN, VOCAB = 8, 24, 300


@pytest.fixture(autouse=True, params=[int(os.environ["PRUNEC_TEST_SEED"])], ids="seed {}".format)
def _fresh_numbers(request: pytest.FixtureRequest) -> None:
    torch.manual_seed(request.param)


class Supernet:
    """The memory of a walk that keeps every size of every layer."""

    with_nested = True

    def __init__(self) -> None:
        self.layers: list[NestedLayer] = []

    def load(self, index: int) -> CutLayer | None:
        return None

    def save(self, index: int, nested: NestedLayer, cut: CutLayer) -> None:
        self.layers.append(nested)


class Lab:
    """A supernet, its dense model in transformers, and tokens to compare them on."""

    @torch.no_grad()
    def __init__(
        self, folder: Path, dtype: torch.dtype = torch.float32, dense_target: float = 0.5
    ) -> None:
        self.folder, self.dtype = folder, dtype
        checkpoint = Checkpoint(folder, facts_from_folder(folder))
        self.decoder = Decoder(checkpoint, dtype, torch.device("cpu"))
        supernet = Supernet()
        centre = (LayerSpec(2, 1, DIM, 12),) * 3
        prune_sequentially(
            self.decoder,
            torch.randint(0, VOCAB, (5, 16)),
            centre,
            Solver(0.01, dense_target),
            supernet,
        )
        self.supernet = supernet.layers
        self.ids = torch.randint(0, VOCAB, (6, 13))
        self.dense = self.reference()(self.ids).logits

    def reference(self) -> LlamaForCausalLM:
        return LlamaForCausalLM.from_pretrained(self.folder, dtype=self.dtype).eval()

    def evaluator(self, **placement: Any) -> Evaluator:
        teacher = TeacherDistributions.from_logits(self.dense.float(), VOCAB)
        placed = Placement(**placement)
        decoder = Decoder(self.decoder.checkpoint, self.dtype, self.decoder.device, placed)
        return Evaluator(decoder, self.supernet, self.ids, teacher)

    @torch.no_grad()
    def expected(self, layout: Layout) -> Tensor:
        """[windows] float64, by a full-size model with zeros and refitted columns."""
        model, facts = self.reference(), self.decoder.facts
        for index, spec in enumerate(layout):
            layer = model.model.layers[index]
            cut = self.supernet[index].cut(facts, self.decoder.layer_tensors(index), spec)
            columns = [h * DIM + i for h in cut.selection.query_heads for i in range(DIM)]
            for last, kept, name in (
                (layer.self_attn.o_proj, columns, "self_attn.o_proj.weight"),
                (layer.mlp.down_proj, list(cut.selection.neurons), "mlp.down_proj.weight"),
            ):
                last.weight.zero_()
                if kept:
                    last.weight[:, kept] = cut.tensors[name]
                elif last.bias is not None:
                    last.bias.zero_()
        p = self.dense.double().log_softmax(dim=-1)
        q = model(self.ids).logits.double().log_softmax(dim=-1)
        expected: Tensor = (p.exp() * (p - q)).sum(dim=-1).mean(dim=-1)
        return expected


def _layout(*shapes: tuple[int, int, int]) -> Layout:
    return tuple(LayerSpec(queries, kv, DIM, ffn) for queries, kv, ffn in shapes)


LAYOUTS = [
    _layout((2, 1, 12), (2, 1, 12), (2, 1, 12)),
    _layout((4, 2, 24), (2, 1, 7), (1, 1, 3)),
    _layout((0, 0, 24), (4, 2, 0), (2, 1, 12)),
    _layout((1, 1, 12), (0, 0, 0), (4, 2, 24)),
]


@pytest.fixture
def lab(tiny_llama: Callable[..., Path]) -> Lab:
    return Lab(tiny_llama(layers=3, hidden=32, head_dim=DIM, ffn=FFN, biased=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dense_layout_does_not_diverge(tiny_llama: Callable[..., Path], dtype: str) -> None:
    folder = tiny_llama(layers=3, hidden=32, head_dim=DIM, ffn=FFN, tied=True, dtype=dtype)
    # Levels that are fitted towards the dense model undo what the layers before have lost, and
    # overdo it where those have lost nothing.
    lab = Lab(folder, getattr(torch, dtype), dense_target=0.0)
    measured = lab.evaluator().divergences(dense_layout(lab.decoder.facts), range(6))
    assert measured.dtype == torch.float64 and measured.shape == (6,)
    assert measured.abs().max() < 1e-6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_candidate_diverges_as_its_masked_and_refitted_model_does(
    lab: Lab, layout: Layout
) -> None:
    expected = lab.expected(layout)
    assert expected.min() > 0.01
    evaluator = lab.evaluator(batch_tokens=30)  # several batches
    torch.testing.assert_close(
        evaluator.divergences(layout, range(6)), expected, rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(
        evaluator.divergences(layout, range(3)), expected[:3], rtol=1e-4, atol=1e-6
    )
    scattered = [4, 0, 5]
    torch.testing.assert_close(
        evaluator.divergences(layout, scattered), expected[scattered], rtol=1e-4, atol=1e-6
    )
    assert evaluator.token_forwards == (6 + 3 + 3) * 13


@pytest.mark.parametrize("cut_bytes", [0, 1, 20_000])
def test_a_small_cache_changes_no_score_and_stays_small(lab: Lab, cut_bytes: int) -> None:
    roomy, tight = lab.evaluator(), lab.evaluator(cut_bytes=cut_bytes)
    for layout in [*LAYOUTS, *reversed(LAYOUTS), *LAYOUTS]:
        assert torch.equal(roomy.divergences(layout, range(2)), tight.divergences(layout, range(2)))
    cuts = tight._cuts._held
    held = sum(p.nbytes for layer in cuts.values() for p in layer.parameters())
    assert held == cut_bytes - tight._cuts._bytes_left
    assert held <= cut_bytes or len(cuts) == 1
    assert len(roomy._cuts._held) > 2 * len(cuts)


@pytest.mark.parametrize("file_bytes", [2**20, 20_000])
def test_a_search_that_pages_scores_as_one_in_memory_does(
    lab: Lab, file_bytes: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    solved: list[int] = []
    weight = NestedSolution.weight

    def counted(solution: NestedSolution, size: int) -> tuple[Tensor, Tensor]:
        solved.append(size)
        return weight(solution, size)

    monkeypatch.setattr(NestedSolution, "weight", counted)
    small: dict[str, Any] = {"batch_tokens": 30, "cut_bytes": 1, "state_bytes": 30_000}
    paged = lab.evaluator(
        **small,
        cut_file_bytes=file_bytes,
        states_in_file=True,
        vocabulary_stays=False,
        scratch=tmp_path / "scratch",
    )
    roomy = lab.evaluator(batch_tokens=30, state_bytes=30_000)
    needed = []
    for evaluator in (roomy, paged):
        solved.clear()
        scores = [evaluator.rebase(LAYOUTS[1])]
        for layout in [*LAYOUTS, *reversed(LAYOUTS), *LAYOUTS]:
            scores += [evaluator.divergences(layout, range(1, 5))]
        needed.append((torch.cat(scores), len(solved)))
    (expected, once), (measured, times) = needed
    assert torch.equal(measured, expected)
    # From the file a sublayer comes back as it is; without one it is solved for again.
    assert times == once if file_bytes == 2**20 else times > once
    assert paged.token_forwards == roomy.token_forwards
    assert not list((tmp_path / "scratch").iterdir())


def test_scores_do_not_depend_on_what_was_scored_before(lab: Lab) -> None:
    evaluator = lab.evaluator()
    together = [evaluator.divergences(layout, range(6)) for layout in LAYOUTS]
    for layout, score in zip(LAYOUTS, together, strict=True):
        assert torch.equal(lab.evaluator().divergences(layout, range(6)), score)


def test_bf16_models_are_scored_too(tiny_llama: Callable[..., Path]) -> None:
    folder = tiny_llama(layers=3, hidden=32, head_dim=DIM, ffn=FFN, tied=True, dtype="bfloat16")
    lab = Lab(folder, torch.bfloat16)
    measured, expected = (
        lab.evaluator().divergences(LAYOUTS[1], range(6)),
        lab.expected(LAYOUTS[1]),
    )
    torch.testing.assert_close(measured, expected, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("state_bytes", [0, 30_000, 2**30])
def test_a_candidate_scores_alike_from_the_start_and_from_kept_states(
    lab: Lab, state_bytes: int
) -> None:
    base = LAYOUTS[1]
    near = [
        base,
        _layout((4, 2, 24), (2, 1, 7), (1, 1, 12)),  # the last sublayer only
        _layout((4, 2, 24), (2, 1, 7), (4, 2, 3)),
        _layout((4, 2, 24), (0, 0, 7), (1, 1, 3)),
        _layout((4, 2, 7), (2, 1, 7), (1, 1, 3)),
        _layout((2, 1, 24), (2, 1, 7), (1, 1, 3)),  # the first sublayer
    ]
    cached = lab.evaluator(batch_tokens=30, state_bytes=state_bytes)
    plain = [lab.evaluator().divergences(layout, range(6)) for layout in near]
    torch.testing.assert_close(cached.rebase(base), plain[0], rtol=0, atol=1e-5)
    for layout, expected in zip(near, plain, strict=True):
        measured = cached.divergences(layout, [5, 0, 3])
        torch.testing.assert_close(measured, expected[[5, 0, 3]], rtol=0, atol=1e-5)
    assert cached.token_forwards == (6 + 3 * len(near)) * 13
    held = sum(states.nbytes for states in cached._states.values())
    assert held <= state_bytes


def test_kept_states_save_the_sublayers_that_are_shared(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = lab.evaluator()
    evaluator.rebase(LAYOUTS[0])
    ran: list[str] = []
    decoder = evaluator.decoder
    attend, feed = decoder.attend, decoder.feed

    def noted(name: str, run: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def running(*args: object) -> Tensor:
            ran.append(name)
            return run(*args)

        return running

    monkeypatch.setattr(decoder, "attend", noted("attention", attend))
    monkeypatch.setattr(decoder, "feed", noted("mlp", feed))
    evaluator.divergences(_layout((2, 1, 12), (2, 1, 7), (2, 1, 12)), range(6))
    assert ran == ["mlp", "attention", "mlp"]
