# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from prunec.validators.errors import ValidationError
from prunec.validators.loading import open_model
from prunec.validators.measurements import Estimate
from prunec.validators.perplexity import (
    Perplexity,
    compare_texts,
    measure_perplexity,
    measure_text,
)


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.randint(0, 300, (5, 12), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_float64_perplexity_of_the_logits(
    saved_llama: Path, windows: torch.Tensor, dtype: torch.dtype
) -> None:
    reference = LlamaForCausalLM.from_pretrained(saved_llama, dtype=dtype).eval()
    with torch.no_grad():
        logits = reference(windows).logits.double()
    expected = []
    for window, scores in zip(windows.tolist(), logits.tolist(), strict=True):
        losses = []
        for position, following in enumerate(window[1:]):
            peak = max(scores[position])
            total = sum(math.exp(score - peak) for score in scores[position])
            losses.append(math.log(total) + peak - scores[position][following])
        expected.append(sum(losses) / len(losses))

    measured = measure_perplexity(open_model(saved_llama, dtype), windows)

    assert measured.tokens == 5 * 11
    assert measured.window_losses == pytest.approx(expected, rel=1e-5)
    assert measured.loss == pytest.approx(sum(expected) / 5, rel=1e-5)
    assert measured.value == pytest.approx(math.exp(sum(expected) / 5), rel=1e-4)


def test_tokens_that_every_window_begins_with_are_given_not_scored(
    saved_llama: Path, windows: torch.Tensor
) -> None:
    windows[:, :3] = torch.tensor([7, 8, 9])
    logits = LlamaForCausalLM.from_pretrained(saved_llama).eval()(windows).logits.double()
    losses = -logits[:, 2:-1].log_softmax(-1).gather(-1, windows[:, 3:, None])[..., 0]
    model = open_model(saved_llama, torch.float32)

    dense = measure_text(model, windows, keep=16, given=3)
    assert dense.perplexity.tokens == 5 * 9
    assert dense.perplexity.window_losses == pytest.approx(losses.mean(1).tolist(), rel=1e-5)
    again = measure_text(model, windows, reference=dense.reference, given=3)
    assert again.window_divergences == pytest.approx([0] * 5, abs=1e-6)
    with pytest.raises(ValidationError, match=r"at \[5, 9\] positions, .* is to be at \[5, 11\]"):
        measure_text(model, windows, reference=dense.reference)
    with pytest.raises(ValidationError, match="leave nothing to predict"):
        measure_text(model, windows[:, :3], given=3)


def test_batches_change_progress_but_not_the_result(
    saved_llama: Path, windows: torch.Tensor
) -> None:
    model = open_model(saved_llama, torch.float32)
    done: list[int] = []
    whole = measure_perplexity(model, windows)
    split = measure_perplexity(model, windows, batch_tokens=25, on_progress=done.append)
    assert done == [2, 4, 5]
    assert split.window_losses == pytest.approx(whole.window_losses, rel=1e-5)


def test_nan_weights_give_a_nan_perplexity(llama: Path, windows: torch.Tensor) -> None:
    tensors = load_file(llama / "model.safetensors")
    tensors["model.norm.weight"][0] = math.nan
    save_file(tensors, llama / "model.safetensors", metadata={"format": "pt"})
    measured = measure_perplexity(open_model(llama, torch.float32), windows)
    assert math.isnan(measured.value)
    assert not measured.finite


def test_a_loss_too_large_for_exp_is_infinite_and_flagged(llama: Path) -> None:
    tensors = load_file(llama / "model.safetensors")
    tensors["model.norm.weight"] *= 1e6
    save_file(tensors, llama / "model.safetensors", metadata={"format": "pt"})
    measured = measure_perplexity(open_model(llama, torch.float32), torch.arange(12).reshape(1, 12))
    assert measured.loss > 1000
    assert measured.value == math.inf
    assert not measured.finite


@pytest.mark.parametrize(
    "ids, complaint",
    [
        (torch.zeros(0, 12, dtype=torch.long), "nothing to predict"),
        (torch.zeros(3, 1, dtype=torch.long), "nothing to predict"),
        (torch.tensor([[1, 300]]), "token ids 1 … 300 do not fit"),
    ],
)
def test_windows_that_cannot_be_measured_are_refused(
    saved_llama: Path, ids: torch.Tensor, complaint: str
) -> None:
    with pytest.raises(ValidationError, match=complaint):
        measure_perplexity(open_model(saved_llama, torch.float32), ids)


def test_a_folder_without_one_of_its_tensors_does_not_open(llama: Path) -> None:
    tensors = load_file(llama / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, llama / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValidationError, match=r"missing tensors.*layers\.1\.mlp\.up_proj"):
        open_model(llama, torch.float32)


def test_a_folder_of_another_shape_does_not_open(llama: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    with pytest.raises(ValidationError, match="llama does not load"):
        open_model(llama, torch.float32)


def test_a_path_without_a_model_is_never_taken_for_a_name_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"no config\.json"):
        open_model(tmp_path / "gpt2", torch.float32)


def test_code_in_a_folder_is_not_run_unasked(llama: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    config |= {
        "model_type": "homemade",
        "auto_map": {
            "AutoConfig": "homemade.Config",
            "AutoModelForCausalLM": "homemade.Model",
        },
    }
    (llama / "config.json").write_text(json.dumps(config))
    (llama / "homemade.py").write_text("open('ran', 'w')")
    with pytest.raises(ValidationError, match="does not load") as caught:
        open_model(llama, torch.float32)
    assert "trust_remote_code" in str(caught.value.__cause__)


def measured(*losses: float) -> Perplexity:
    mean = sum(losses) / len(losses)
    return Perplexity(math.exp(mean), mean, 11 * len(losses), losses)


def ratio_of(dense: Perplexity, pruned: Perplexity) -> Estimate:
    return compare_texts(dense, pruned, [0.0] * len(pruned.window_losses))[0]


def test_identical_models_have_a_ratio_of_exactly_one() -> None:
    one = measured(2.5, 3.1, 2.9)
    ratio, divergence = compare_texts(one, one, (0.0, 0.0, 0.0))
    assert (ratio.value, ratio.low, ratio.high) == (1.0, 1.0, 1.0)
    assert (divergence.value, divergence.low, divergence.high) == (0.0, 0.0, 0.0)
    assert (ratio.count, ratio.unit) == (divergence.count, divergence.unit) == (3, "windows")


def test_a_constant_difference_leaves_no_doubt_however_much_windows_differ() -> None:
    ratio = ratio_of(measured(1, 5, 9), measured(1.5, 5.5, 9.5))
    assert (ratio.low, ratio.high) == pytest.approx((math.exp(0.5),) * 2)


def test_the_intervals_are_the_normal_ones_on_many_windows_and_repeat() -> None:
    differences = torch.randn(400, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    dense, pruned = measured(*[3.0] * 400), measured(*(3.0 + differences).tolist())
    ratio, divergence = compare_texts(dense, pruned, differences.exp().tolist())
    half = 1.96 * differences.std().item() / 20
    mean = differences.mean().item()
    assert ratio.value == pytest.approx(pruned.value / dense.value)
    assert math.log(ratio.low) == pytest.approx(mean - half, abs=0.015)
    assert math.log(ratio.high) == pytest.approx(mean + half, abs=0.015)
    assert divergence.value == pytest.approx(differences.exp().mean().item())
    half = 1.96 * differences.exp().std().item() / 20
    assert divergence.value - divergence.low == pytest.approx(half, rel=0.1)
    # A few windows hold much of the sum: what was not drawn may well be worse.
    assert 1.1 * half < divergence.high - divergence.value < 1.8 * half
    assert ratio == ratio_of(dense, pruned)


def test_one_window_or_a_nan_gives_no_interval() -> None:
    assert math.isnan(ratio_of(measured(2.0), measured(2.5)).low)
    ratio = ratio_of(measured(2.0, 2.0), measured(2.5, math.nan))
    assert math.isnan(ratio.value) and math.isnan(ratio.low) and math.isnan(ratio.high)
    _, divergence = compare_texts(measured(2.0, 2.0), measured(2.5, 2.5), (0.1, math.nan))
    assert math.isnan(divergence.value) and math.isnan(divergence.low)


def test_measurements_of_different_windows_are_not_compared() -> None:
    with pytest.raises(ValidationError, match="22 and 33 tokens"):
        compare_texts(measured(1, 2), measured(1, 2, 3), (0.0, 0.0))
    with pytest.raises(ValidationError, match="1 divergences and 2 losses"):
        compare_texts(measured(1, 2), measured(1, 2), (0.0,))
