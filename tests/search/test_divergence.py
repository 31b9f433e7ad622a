# SPDX-License-Identifier: Apache-2.0
"""Divergences are held against sums in float64 over the whole vocabulary."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunec.compiler.search.divergence import (
    RenormalisedTeacher,
    TeacherDistributions,
    divergence,
)

SEEDS = st.integers(0, 2**32 - 1)
SCALES = st.sampled_from([0.0, 0.1, 1.0, 5.0, 30.0, 1000.0])


def _log_softmax(logits: torch.Tensor) -> np.ndarray:
    values = logits.double().numpy()
    values = values - values.max(axis=-1, keepdims=True)
    return np.asarray(values - np.log(np.exp(values).sum(axis=-1, keepdims=True)))


def exact(dense: torch.Tensor, candidate: torch.Tensor) -> np.ndarray:
    """[windows]: Σ p (log p − log q), mean over positions."""
    p, q = _log_softmax(dense), _log_softmax(candidate)
    return np.asarray((np.exp(p) * (p - q)).sum(axis=-1).mean(axis=-1))


def _logits(seed: int, vocab: int, scale: float) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    # Heavy tails, as real logits have them.
    return torch.from_numpy(scale * rng.standard_t(3, (3, 5, vocab))).float()


@given(SEEDS, SCALES, SCALES, st.sampled_from([1, 2, 7, 200]))
@settings(max_examples=60, deadline=None)
def test_with_the_whole_vocabulary_it_is_the_exact_divergence(
    seed: int, scale: float, apart: float, vocab: int
) -> None:
    dense = _logits(seed, vocab, scale)
    candidate = dense + _logits(seed + 1, vocab, apart)
    teacher = TeacherDistributions.from_logits(dense, vocab)
    measured = divergence(teacher, candidate).numpy()
    assert measured.shape == (3,)
    np.testing.assert_allclose(measured, exact(dense, candidate), rtol=1e-4, atol=1e-5)


@given(SEEDS, SCALES, SCALES, st.sampled_from([1, 2, 20, 199]))
@settings(max_examples=60, deadline=None)
def test_a_bucket_for_the_rest_never_raises_it_and_leaves_it_positive(
    seed: int, scale: float, apart: float, top_k: int
) -> None:
    dense = _logits(seed, 200, scale)
    candidate = dense + _logits(seed + 1, 200, apart)
    teacher = TeacherDistributions.from_logits(dense, top_k)
    measured = divergence(teacher, candidate).numpy()
    whole = exact(dense, candidate)
    assert np.isfinite(measured).all()
    assert (measured >= -1e-5).all()
    assert (measured <= whole * (1 + 1e-4) + 1e-5).all()


@given(SEEDS, st.sampled_from([0.1, 1.0, 2.0]), st.sampled_from([1, 2, 20]))
@settings(max_examples=30, deadline=None)
def test_the_rest_is_one_event_of_both_distributions(seed: int, scale: float, top_k: int) -> None:
    # No heavy tails: float32 tells the rest from nothing only down to a millionth.
    rng = np.random.default_rng(seed)
    dense, candidate = torch.from_numpy(scale * rng.standard_normal((2, 3, 5, 60))).float()
    p, q = np.exp(_log_softmax(dense)), np.exp(_log_softmax(candidate))
    order = np.argsort(-p, axis=-1)
    p, q = np.take_along_axis(p, order, -1), np.take_along_axis(q, order, -1)
    p = np.concatenate([p[..., :top_k], p[..., top_k:].sum(-1, keepdims=True)], -1)
    q = np.concatenate([q[..., :top_k], q[..., top_k:].sum(-1, keepdims=True)], -1)
    expected = (p * np.log(p / q)).sum(-1).mean(-1)
    measured = divergence(TeacherDistributions.from_logits(dense, top_k), candidate)
    np.testing.assert_allclose(measured.numpy(), expected, rtol=1e-3, atol=2e-5)


@given(SEEDS, SCALES, st.sampled_from([1, 20, 200]))
@settings(max_examples=30, deadline=None)
def test_a_model_does_not_differ_from_itself(seed: int, scale: float, top_k: int) -> None:
    dense = _logits(seed, 200, scale)
    teacher = TeacherDistributions.from_logits(dense, top_k)
    assert divergence(teacher, dense.clone()).abs().max() <= 1e-6
    # Logits are only known up to a constant.
    assert divergence(teacher, dense + 3.0).abs().max() <= 1e-3


@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_certainties_that_contradict_each_other_stay_finite(top_k: int) -> None:
    dense, candidate = torch.zeros(1, 1, 8), torch.zeros(1, 1, 8)
    dense[..., 0] = candidate[..., 5] = 1e4
    measured = divergence(TeacherDistributions.from_logits(dense, top_k), candidate)
    assert measured.item() == pytest.approx(1e4, rel=1e-3)


def test_windows_can_be_taken_apart() -> None:
    dense, candidate = _logits(1, 50, 2.0), _logits(2, 50, 2.0)
    teacher = TeacherDistributions.from_logits(dense, 9)
    assert teacher.ids.dtype == torch.int32
    whole = divergence(teacher, candidate)
    parts = [divergence(teacher[w : w + 1], candidate[w : w + 1]) for w in range(3)]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_renormalised_it_is_blind_to_tokens_beyond_the_top() -> None:
    dense = torch.tensor([[[0.6, 0.1, 0.3]]]).log()
    candidate = torch.tensor([[[0.2, 0.6, 0.2]]]).log()
    teacher = RenormalisedTeacher.of(TeacherDistributions.from_logits(dense, 2))
    # (2/3, 1/3) against (1/2, 1/2)
    expected = 2 / 3 * np.log(4 / 3) + 1 / 3 * np.log(2 / 3)
    assert teacher.divergence(candidate).item() == pytest.approx(expected)
    # The dense model's own proportions, most of the mass on the second token.
    astray = torch.tensor([[[0.1, 0.85, 0.05]]]).log()
    assert teacher.divergence(astray).item() == pytest.approx(0, abs=1e-6)


@given(SEEDS, st.sampled_from([0.1, 1.0, 5.0, 30.0]), SCALES, st.sampled_from([1, 3, 20]))
@settings(max_examples=60, deadline=None)
def test_renormalised_it_is_the_exact_divergence_among_the_top_tokens(
    seed: int, scale: float, apart: float, top_k: int
) -> None:
    dense = _logits(seed, 20, scale)
    candidate = dense + _logits(seed + 1, 20, apart)
    teacher = TeacherDistributions.from_logits(dense, top_k)
    ids = teacher.ids.long()
    whole = exact(dense.gather(-1, ids), candidate.gather(-1, ids))
    measured = RenormalisedTeacher.of(teacher)[1:].divergence(candidate[1:]).numpy()
    np.testing.assert_allclose(measured, whole[1:], rtol=1e-4, atol=1e-4 * max(1.0, scale))
