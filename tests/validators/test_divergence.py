# SPDX-License-Identifier: Apache-2.0
"""Divergence from the dense model, against plain float64 sums over the whole vocabulary."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import kl_div

from prunec.validators.divergence import Reference, coarsen, divergence
from prunec.validators.errors import ValidationError
from prunec.validators.loading import LoadedModel, open_model
from prunec.validators.perplexity import measure_text

VOCABULARY = 97


def logits(seed: int, scale: float = 3.0) -> Tensor:
    """[positions, vocabulary]"""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(40, VOCABULARY, generator=generator)


def whole(dense: Tensor, model: Tensor) -> Tensor:
    """[positions]: KL in float64, over every token."""
    theirs, ours = dense.double().log_softmax(-1), model.double().log_softmax(-1)
    return kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)


def ours(dense: Tensor, model: Tensor, keep: int) -> Tensor:
    return divergence(coarsen(dense.log_softmax(-1), keep), model.log_softmax(-1))


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_with_the_whole_vocabulary_it_is_the_float64_divergence(scale: float) -> None:
    dense, model = logits(0, scale), logits(1, scale)
    for keep in (VOCABULARY, 1000):
        expected = whole(dense, model)
        torch.testing.assert_close(ours(dense, model, keep), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("near", [0.02, 1.0])
def test_fewer_tokens_never_raise_it_and_more_approach_it(near: float) -> None:
    dense = logits(0)
    model = dense + near * logits(1, 1.0)
    found = [ours(dense, model, keep) for keep in (1, 4, 16, 64, VOCABULARY)]
    for fewer, more in pairwise(found):
        assert (fewer <= more + 1e-6).all()
    assert (found[0] >= -1e-6).all()
    assert found[2].mean() > 0.5 * found[-1].mean()


def test_a_rest_of_almost_nothing_is_not_rounding() -> None:
    # All but a millionth lies on the kept token; the other model has ten times as much elsewhere.
    dense, model = torch.zeros(1, VOCABULARY), torch.zeros(1, VOCABULARY)
    dense[0, 0], model[0, 0] = (math.log((VOCABULARY - 1) / rest) for rest in (1e-6, 1e-5))
    torch.testing.assert_close(ours(dense, model, 1), whole(dense, model), rtol=1e-2, atol=1e-9)


@pytest.mark.parametrize("keep", [5, VOCABULARY])
def test_what_the_dense_model_rules_out_costs_nothing_and_the_reverse_is_infinite(
    keep: int,
) -> None:
    dense, model = logits(0), logits(1)
    dense[:, 7] = -torch.inf
    assert ours(dense, model, keep).isfinite().all()
    if keep == VOCABULARY:
        assert ours(model, dense, keep).isinf().all()


def test_nan_stays_nan() -> None:
    broken = logits(1)
    broken[3, 5] = torch.nan
    for dense, model in ((logits(0), broken), (broken, logits(0))):
        assert ours(dense, model, 8).isnan().nonzero().flatten().tolist() == [3]


@pytest.fixture
def windows() -> Tensor:
    return torch.randint(0, 300, (5, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def changed(llama: Path) -> LoadedModel:
    tensors = load_file(llama / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] *= 0.5
    save_file(tensors, llama / "model.safetensors", metadata={"format": "pt"})
    return open_model(llama, torch.float32)


def test_windows_diverge_as_their_logits_do(
    saved_llama: Path, changed: LoadedModel, windows: Tensor, tmp_path: Path
) -> None:
    dense = open_model(saved_llama, torch.float32)
    with torch.no_grad():
        expected = whole(dense.model(windows).logits[:, :-1], changed.model(windows).logits[:, :-1])
    kept = measure_text(dense, windows, keep=300, batch_tokens=24).reference
    assert kept is not None
    save_file(kept.as_tensors(), tmp_path / "reference.safetensors")
    stored = Reference.from_tensors(load_file(tmp_path / "reference.safetensors"))

    found = measure_text(changed, windows, reference=stored).window_divergences

    assert found == pytest.approx(expected.mean(-1).tolist(), rel=1e-4)
    assert measure_text(changed, windows).window_divergences is None


def test_a_model_does_not_diverge_from_itself(saved_llama: Path, windows: Tensor) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = open_model(saved_llama, dtype)
        dense = measure_text(model, windows, keep=20)
        again = measure_text(model, windows, reference=dense.reference)
        assert again.window_divergences == (0.0,) * 5
        assert again.perplexity == dense.perplexity


def test_chunks_of_positions_change_nothing(
    saved_llama: Path, windows: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(saved_llama, torch.float32)
    dense = measure_text(model, windows, keep=20)
    monkeypatch.setattr("prunec.validators.perplexity._CHUNK_BYTES", 4 * 300 * 3)
    again = measure_text(model, windows, reference=dense.reference, keep=20)
    assert again.reference is not None and dense.reference is not None
    assert torch.equal(again.reference.ids, dense.reference.ids)
    assert again.window_divergences == pytest.approx([0.0] * 5, abs=1e-9)
    assert again.perplexity.loss == pytest.approx(dense.perplexity.loss)


def test_other_windows_or_another_vocabulary_are_refused(
    saved_llama: Path, windows: Tensor
) -> None:
    model = open_model(saved_llama, torch.float32)
    reference = measure_text(model, windows, keep=20).reference
    assert reference is not None
    for other in (windows[:4], windows[:, :9]):
        with pytest.raises(ValidationError, match=r"measured at \[5, 11\] positions"):
            measure_text(model, other, reference=reference)
    other_model = Reference(*(reference.ids, reference.log_probs, reference.log_tail), 301)
    with pytest.raises(ValidationError, match="has 300 tokens, the dense model has 301"):
        measure_text(model, windows, reference=other_model)
    with pytest.raises(ValidationError, match="not a reference's tensors"):
        Reference.from_tensors({"ids": reference.ids})
