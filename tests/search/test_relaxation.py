# SPDX-License-Identifier: Apache-2.0
"""Mixtures of sizes on a tiny model: held against the evaluator and against differences."""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from prunec.compiler.model import decoder as decoder_module
from prunec.compiler.model.checkpoint import Checkpoint
from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.folder import facts_from_folder
from prunec.compiler.model.layout import LayerSpec
from prunec.compiler.passes.least_squares import NestedSolution, NormalEquations
from prunec.compiler.passes.nested import CutLayer, NestedLayer
from prunec.compiler.passes.sequential import Solver, prune_sequentially
from prunec.compiler.search import relaxation as relaxation_module
from prunec.compiler.search.allowance import Allowance
from prunec.compiler.search.budget import Budget, Candidate
from prunec.compiler.search.divergence import TeacherDistributions
from prunec.compiler.search.evaluator import Evaluator
from prunec.compiler.search.level_relaxation import LevelRelaxation, sites_around
from prunec.compiler.search.relaxation import Numbers, Relaxation, Site, blend
from prunec.compiler.search.searcher import Settings, search
from prunec.compiler.search.space import Space

DIM, FFN, VOCAB, LAYERS, WINDOWS, LENGTH = 8, 24, 300, 2, 5, 11
#: Sizes that are mixed; the first are none.
SHAPES = ((0, 0), (1, 1), (2, 1), (4, 2))
WIDTHS = (0, 7, 12, 24)


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
    """A supernet, and what is asked of it."""

    @torch.no_grad()
    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        checkpoint = Checkpoint(folder, facts_from_folder(folder))
        self.decoder = Decoder(checkpoint, dtype, torch.device("cpu"))
        memory = Supernet()
        centre = (LayerSpec(2, 1, DIM, 12),) * LAYERS
        ids = torch.randint(0, VOCAB, (5, 16))
        prune_sequentially(self.decoder, ids, centre, Solver(0.01, 0.0), memory)
        self.supernet = memory.layers
        self.ids = torch.randint(0, VOCAB, (WINDOWS, LENGTH))
        hidden = self.decoder.embed(self.ids)
        for index in range(LAYERS):
            spec = LayerSpec(4, 2, DIM, FFN)
            layer = self.decoder.layer(index, spec, self.decoder.layer_tensors(index))
            hidden = self.decoder.feed(layer, self.decoder.attend(layer, hidden))
        self.teacher = TeacherDistributions.from_logits(self.decoder.logits(hidden), VOCAB)

    def relaxation(self, sites: Sequence[Site]) -> Relaxation:
        return Relaxation(self.decoder, self.supernet, self.ids, self.teacher, sites)

    def evaluator(self) -> Evaluator:
        return Evaluator(self.decoder, self.supernet, self.ids, self.teacher)


def _sites(groups: Sequence[range] = (range(1), range(1, 2))) -> list[Site]:
    shapes = tuple(LayerSpec(*shape, DIM, 0) for shape in SHAPES)
    widths = tuple(LayerSpec(0, 0, DIM, width) for width in WIDTHS)
    costs = np.zeros(4)
    return [
        Site(group, attention, shapes if attention else widths, costs)
        for group in groups
        for attention in (False, True)
    ]


@pytest.mark.parametrize(
    ("dtype", "near"), [("float64", 1e-6), ("float32", 1e-5), ("bfloat16", 0.05)]
)
@pytest.mark.parametrize("sizes", [(3, 3, 3, 3), (1, 1, 3, 2), (0, 3, 2, 2), (1, 0, 0, 1)])
def test_a_mixture_of_one_size_is_the_layout_of_that_size(
    tiny_llama: Callable[..., Path],
    dtype: str,
    near: float,
    sizes: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relaxation_module, "GRADIENT_TOKENS", 2 * LENGTH)  # several passes
    monkeypatch.setattr(decoder_module, "LOGIT_BYTES", 1)
    folder = tiny_llama(layers=LAYERS, hidden=32, head_dim=DIM, ffn=FFN, biased=True)
    lab = Lab(folder, getattr(torch, dtype))
    relaxation = lab.relaxation(_sites())
    relaxation.slopes(np.full((4, 4), 0.25), range(2))  # whatever was mixed before
    with torch.no_grad():
        measured, _ = relaxation.slopes(np.eye(4)[list(sizes)], range(1, 5))
    layout = tuple(
        LayerSpec(*SHAPES[sizes[2 * i + 1]], DIM, WIDTHS[sizes[2 * i]]) for i in range(LAYERS)
    )
    expected = float(lab.evaluator().divergences(layout, range(1, 5)).mean())
    assert measured == pytest.approx(expected, rel=near, abs=near)
    assert expected > 0.05 or sizes == (3, 3, 3, 3)
    assert relaxation.token_forwards == 3 * (2 + 4) * LENGTH


def _in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms and logits are float32 in every model; differences need them exact."""

    def norm(self: LlamaRMSNorm, hidden: Tensor) -> Tensor:
        mean = hidden.square().mean(-1, keepdim=True)
        normed: Tensor = self.weight * hidden * torch.rsqrt(mean + self.variance_epsilon)
        return normed

    def logits(self: Decoder, hidden: Tensor) -> Tensor:
        return self.normed(hidden) @ self.head.T

    monkeypatch.setattr(LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(decoder_module.Decoder, "logits", logits)


@pytest.mark.parametrize("tied", [False, True])
def test_slopes_are_what_small_changes_of_probabilities_do(
    tiny_llama: Callable[..., Path], tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _in_double(monkeypatch)
    monkeypatch.setattr(relaxation_module, "GRADIENT_TOKENS", 2 * LENGTH)
    folder = tiny_llama(layers=LAYERS, hidden=32, head_dim=DIM, ffn=FFN, biased=True)
    lab = Lab(folder, torch.float64)
    sites = _sites([range(LAYERS)]) if tied else _sites()
    relaxation = lab.relaxation(sites)
    probabilities = torch.rand(len(sites), 4, dtype=torch.float64).softmax(dim=1).numpy()
    windows = [4, 0, 2]
    _, slopes = relaxation.slopes(probabilities, windows)
    expected, small = np.zeros_like(slopes), 1e-5
    for at in np.ndindex(*slopes.shape):
        change = np.zeros_like(slopes)
        change[at] = small
        above, _ = relaxation.slopes(probabilities + change, windows)
        below, _ = relaxation.slopes(probabilities - change, windows)
        expected[at] = (above - below) / (2 * small)
    assert np.abs(expected[:, :3]).min() > 1e-4  # the last follows from the others
    np.testing.assert_allclose(slopes, expected, rtol=1e-6, atol=1e-8)


def test_a_blend_of_solutions_is_as_bad_as_they_are_on_average() -> None:
    inputs = torch.randn(40, 12, dtype=torch.float64)
    gram, weight = inputs.T @ inputs, torch.randn(12, 3, dtype=torch.float64)
    problem = NormalEquations.of(gram, gram @ weight)
    solution = NestedSolution.solve(problem, torch.randperm(12))
    sizes = [0, 3, 4, 9, 12]
    probabilities = torch.rand(5, dtype=torch.float64).softmax(dim=0).numpy()
    mixed = torch.zeros_like(weight)
    for size, share in zip(sizes, blend(probabilities), strict=True):
        kept, rows = solution.weight(size)
        mixed[kept] += share * rows
    error = float((inputs @ (mixed - weight)).square().sum())
    expected = float(solution.excess_errors()[sizes] @ torch.from_numpy(probabilities))
    assert error == pytest.approx(expected, rel=1e-9)
    assert blend(probabilities).sum() == pytest.approx(1)


def test_neurons_that_do_nothing_go_first(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama(layers=LAYERS, hidden=32, head_dim=DIM, ffn=FFN), folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"].zero_()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    lab = Lab(folder, torch.float32)
    budget = Budget(lab.decoder.facts, 0.5, 4, False, lambda queries, kv: True)
    paths = tuple(tuple(nested.attention.shapes) for nested in lab.supernet)
    space, start = Space(budget, paths), Candidate(((2, 1),) * LAYERS, (12,) * LAYERS)
    sites = sites_around(space, start, 4)
    searcher = LevelRelaxation(space, start, sites, lab.relaxation(sites))
    asked = Settings(2, 4, WINDOWS, LENGTH, (0,))
    allowance = Allowance(900 * LENGTH)
    state = search(searcher, space, lab.evaluator(), start, asked, allowance)
    assert state.notes["relaxation"]["done"] > 100
    logits = np.array(state.notes["relaxation"]["logits"])
    assert searcher.probabilities(logits)[3, 0] > 0.9  # the smallest size of the dead MLP
    assert state.parent.widths[1] <= 4
    assert state.divergence < float(np.mean(state.start_scores))


def test_weights_that_were_let_go_come_back_the_same(tiny_llama: Callable[..., Path]) -> None:
    folder = tiny_llama(layers=LAYERS, hidden=32, head_dim=DIM, ffn=FFN)
    relaxation = Lab(folder, torch.float32).relaxation(_sites())
    probabilities: Numbers = np.full((4, 4), 0.25)
    before = relaxation.slopes(probabilities, range(2))
    weights = weakref.ref(relaxation._mixed[0][0].layer)
    relaxation.release()
    assert weights() is None
    after = relaxation.slopes(probabilities, range(2))
    assert after[0] == before[0] and (after[1] == before[1]).all()
