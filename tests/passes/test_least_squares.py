# SPDX-License-Identifier: Apache-2.0
"""Every prefix of a nested solution is held against a least-squares fit of its own, in numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunec.compiler.model.errors import ModelError
from prunec.compiler.passes import least_squares
from prunec.compiler.passes.least_squares import (
    GramStatistics,
    NestedSolution,
    NormalEquations,
    cholesky,
    invert,
    normal_equations,
)


def _energy(inputs: np.ndarray) -> float:
    """Of inputs [tokens, d_in] the mean channel's, none counted above ten times the median."""
    energy = sorted((inputs**2).sum(axis=0))
    alive = [one for one in energy if one > 0]
    if not alive:
        return 1.0
    median = alive[(len(alive) - 1) // 2]
    return float(np.mean([min(one, 10 * median) for one in energy]))


@dataclass(frozen=True)
class Regression:
    """A sublayer's last map: its inputs [tokens, d_in], what the stream behind it lacks
    [tokens, d_out], its weight, how it is fitted."""

    pruned: np.ndarray
    missing: np.ndarray
    weight: np.ndarray
    damping: float
    dense_target: float
    asymmetry: float = 0.0

    @property
    def ridge(self) -> float:
        return self.damping * _energy(self.pruned)

    @property
    def target(self) -> np.ndarray:
        return np.asarray(self.pruned @ self.weight + self.dense_target * self.missing)

    def equations(self) -> NormalEquations:
        pruned, missing = torch.from_numpy(self.pruned), torch.from_numpy(self.missing)
        own = pruned.T @ pruned
        own += self.asymmetry * own.abs().max() * torch.ones_like(own).triu(1)
        own -= self.asymmetry * own.abs().max() * torch.ones_like(own).tril(-1)
        return normal_equations(
            GramStatistics(own, pruned.T @ missing),
            torch.from_numpy(self.weight),
            damping=self.damping,
            dense_target=self.dense_target,
        )

    def refit(self, kept: np.ndarray) -> np.ndarray:
        """[d_in, d_out], zero where not kept: ridge as extra rows of the design, no Gram matrix."""
        pull = np.sqrt(self.ridge)
        design = np.vstack([self.pruned[:, kept], pull * np.eye(len(kept))])
        wanted = np.vstack([self.target, pull * self.weight[kept]])
        fitted = np.zeros_like(self.weight)
        fitted[kept] = np.linalg.lstsq(design, wanted, rcond=None)[0]
        return fitted

    def error(self, fitted: np.ndarray) -> float:
        """What is minimised: squared error of the outputs and the pull towards the old weights."""
        misfit = ((self.pruned @ fitted - self.target) ** 2).sum()
        return float(misfit + self.ridge * ((fitted - self.weight) ** 2).sum())


@st.composite
def regressions(draw: st.DrawFn) -> Regression:
    """Few tokens, dead inputs, twins, inputs of very different size, sums not quite symmetric."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    d_in, d_out = draw(st.sampled_from([1, 2, 5, 13, 31])), draw(st.sampled_from([1, 7]))
    tokens = draw(st.sampled_from([1, 3, 40]))
    pruned = rng.standard_normal((tokens, d_in)) @ rng.standard_normal((d_in, d_in))
    pruned *= np.exp(draw(st.sampled_from([0, 2])) * rng.standard_normal(d_in))
    missing = draw(st.sampled_from([0, 1.0])) * rng.standard_normal((tokens, d_out))
    if draw(st.booleans()):
        pruned[:, rng.integers(d_in)] = 0
    if draw(st.booleans()):
        first, second = rng.integers(d_in, size=2)
        pruned[:, first] = pruned[:, second]
    weight = rng.standard_normal((d_in, d_out))
    damping = draw(st.sampled_from([1e-3, 0.01, 1.0]))
    dense_target = draw(st.sampled_from([0.0, 0.5, 1.0]))
    # Products in float32 need not come out symmetric.
    asymmetry = draw(st.sampled_from([0.0, 1e-6]))
    return Regression(pruned, missing, weight, damping, dense_target, asymmetry)


@given(regressions(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_every_prefix_has_the_weights_and_the_error_of_a_fit_of_its_own(
    problem: Regression, random: object
) -> None:
    d_in = len(problem.weight)
    order = list(range(d_in))
    random.shuffle(order)  # type: ignore[attr-defined]
    solution = NestedSolution.solve(problem.equations(), torch.tensor(order))
    growth = solution.excess_errors()
    assert growth.shape == (d_in + 1,)
    least = problem.error(problem.refit(np.arange(d_in)))
    scale = 1 + problem.error(np.zeros_like(problem.weight))

    for size in range(d_in + 1):
        inputs, weight = solution.weight(size)
        kept = np.sort(np.array(order[:size], dtype=int))
        assert inputs.tolist() == kept.tolist()
        fitted = problem.refit(kept)
        tolerance = 1e-8 * (1 + np.abs(fitted).max())
        np.testing.assert_allclose(weight.numpy(), fitted[kept], rtol=0, atol=tolerance)
        assert growth[size].item() == pytest.approx(
            problem.error(fitted) - least, rel=1e-8, abs=1e-8 * scale
        )


@given(regressions())
@settings(max_examples=30, deadline=None)
def test_the_target_is_the_blend_of_both_paths_outputs(problem: Regression) -> None:
    equations = problem.equations()
    own = problem.pruned.T @ problem.pruned
    expected = problem.pruned.T @ problem.target + problem.ridge * problem.weight
    scale = 1 + np.abs(expected).max()
    np.testing.assert_allclose(equations.target.numpy(), expected, atol=1e-10 * scale)
    np.testing.assert_allclose(
        equations.gram[:].numpy(),
        own + problem.ridge * np.eye(len(own)),
        atol=1e-12 * (1 + np.abs(own).max()),
    )


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 5, 30]))
@settings(max_examples=15, deadline=None)
def test_removing_nothing_changes_nothing_whatever_the_inputs(seed: int, tokens: int) -> None:
    rng = np.random.default_rng(seed)
    inputs, weight = rng.standard_normal((tokens, 9)), rng.standard_normal((9, 4))
    inputs[:, 3] = 0
    # What is missing must have no say at r = 0.
    problem = Regression(inputs, rng.standard_normal((tokens, 4)), weight, 0.01, 0.0)
    order = torch.from_numpy(rng.permutation(9))
    _, solved = NestedSolution.solve(problem.equations(), order).weight(9)
    np.testing.assert_allclose(solved.numpy(), weight, rtol=0, atol=1e-12)


def test_inputs_that_are_all_zero_keep_their_weights_at_every_size() -> None:
    weight = torch.arange(1.0, 19.0, dtype=torch.float64).reshape(6, 3)
    statistics = GramStatistics.empty(6, 3, with_missing=True)
    problem = normal_equations(statistics, weight, damping=0.01, dense_target=0.5)
    solution = NestedSolution.solve(problem, torch.arange(6))
    for size in range(7):
        torch.testing.assert_close(solution.weight(size)[1], weight[:size])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_are_sums_over_batches_of_unrounded_products(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(least_squares, "_BLOCK", 3)  # of seven rows
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(301, 7, generator=generator).to(dtype)
    missing = torch.randn(301, 3, generator=generator).to(dtype)
    statistics = GramStatistics.empty(7, 3, with_missing=True)
    for start in range(0, 301, 43):
        batch = slice(start, start + 43)
        statistics.add(inputs[batch], missing[batch])
    inputs, missing = inputs.double(), missing.double()
    assert statistics.missing is not None
    assert statistics.own.dtype == statistics.missing.dtype == torch.float64
    own = inputs.T @ inputs
    torch.testing.assert_close(statistics.own.tril(), own.tril(), rtol=0, atol=1e-3)
    problem = normal_equations(statistics, torch.zeros(7, 3), damping=0.01, dense_target=0.0)
    own.diagonal().add_(0.01 * _energy(inputs.numpy()))
    torch.testing.assert_close(problem.gram[:], own, rtol=0, atol=1e-3)
    assert torch.equal(problem.gram[:], problem.gram[:].T)
    torch.testing.assert_close(statistics.missing, inputs.T @ missing, rtol=0, atol=1e-3)


@pytest.mark.parametrize("which", ["inputs", "missing"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_activations_that_are_not_finite_are_refused_on_either_path(
    which: str, value: float
) -> None:
    batch = {"inputs": torch.randn(5, 4), "missing": torch.randn(5, 2)}
    batch[which][2, 1] = value
    statistics = GramStatistics.empty(4, 2, with_missing=True)
    statistics.add(**batch)
    with pytest.raises(ModelError, match="NaN or an infinity"):
        normal_equations(statistics, torch.randn(4, 2), damping=0.01, dense_target=0.5)


@pytest.mark.parametrize("size", [1, 4, 5, 11, 12])
def test_an_inverse_is_made_of_a_factor_block_by_block(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(least_squares, "_BLOCK", 4)
    rng = np.random.default_rng(size)
    rows = rng.standard_normal((2 * size, size)) * np.exp(rng.standard_normal(size))
    gram = rows.T @ rows
    inverse = invert(cholesky(torch.from_numpy(gram))).numpy()
    expected = np.linalg.inv(gram)
    np.testing.assert_allclose(inverse, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


def test_without_a_dense_target_the_weights_solve_their_own_equations() -> None:
    statistics = GramStatistics.empty(6, 3, with_missing=False)
    statistics.add(torch.randn(4, 6), None)  # too few tokens for a full rank
    weight = torch.randn(6, 3)
    problem = normal_equations(statistics, weight, damping=0.01, dense_target=0.0)
    assert problem.dense is not None
    solved = np.linalg.solve(problem.gram[:].numpy(), problem.target.numpy())
    np.testing.assert_allclose(problem.dense.numpy(), solved, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d_in", [64, 111])
@pytest.mark.parametrize("factors", [16, 200])
def test_massive_activations_of_two_channels_do_not_set_the_ridge_of_the_others(
    d_in: int, dtype: torch.dtype, factors: int
) -> None:
    """Two spike on one token in 500; with 16 factors the Gram matrix lacks rank without noise."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((2000, factors)) @ rng.standard_normal((factors, d_in))
    inputs += 0.5 * rng.standard_normal((2000, d_in))
    inputs[::500, [0, 7]] *= 3000
    batch = torch.from_numpy(inputs).to(dtype)
    weight = torch.from_numpy(rng.standard_normal((d_in, 16)))
    statistics = GramStatistics.empty(d_in, 16, with_missing=False)
    statistics.add(batch, None)
    problem = normal_equations(statistics, weight, damping=0.01, dense_target=0.0)
    size = 3 * d_in // 4
    _, fitted = NestedSolution.solve(problem, torch.arange(d_in)).weight(size)
    x, w = batch.double().numpy(), weight.numpy()

    def solved(ridge: float) -> np.ndarray:
        design = np.vstack([x[:, :size], np.sqrt(ridge) * np.eye(size)])
        found: np.ndarray = np.linalg.lstsq(
            design, np.vstack([x @ w, np.sqrt(ridge) * w[:size]]), rcond=None
        )[0]
        return found

    ordinary = np.arange(len(x)) % 500 != 0

    def error(weights: np.ndarray) -> float:
        wrong = x[ordinary][:, :size] @ weights - x[ordinary] @ w
        return float((wrong**2).sum() / ((x[ordinary] @ w) ** 2).sum())

    np.testing.assert_allclose(fitted.numpy(), solved(0.01 * _energy(x)), rtol=0, atol=1e-4)
    # As if nothing had spiked; a share of the plain mean keeps the others near the dense weights.
    plain = x.copy()
    plain[::500, [0, 7]] /= 3000
    assert error(fitted.numpy()) < 1.02 * error(solved(0.01 * float((plain**2).sum(0).mean())))
    assert error(solved(0.01 * float((x**2).sum(0).mean()))) > 1.2 * error(fitted.numpy())
