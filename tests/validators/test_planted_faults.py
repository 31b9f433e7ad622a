# SPDX-License-Identifier: Apache-2.0
"""What goes wrong with artefacts, planted into a trained model: something that judges it notices.

A copy of the model, without a fault, is never accused.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prunec.validators.artefact import inspect
from prunec.validators.loading import LoadedModel, open_model
from prunec.validators.measurements import Estimate, ParityResult
from prunec.validators.parity import ReferenceAnswers, measure_parity, reference_answers
from prunec.validators.perplexity import TextMeasurement, compare_texts, measure_text

PYTINY = Path(__file__).parents[2] / "examples" / "pytiny"
WEIGHTS = "model.safetensors"
WINDOWS, LENGTH = 16, 64
HEAD_DIM = 32


def windows_of(model: LoadedModel) -> Tensor:
    """[WINDOWS, LENGTH] tokens of a module that pytiny has not seen, by the folder's tokenizer."""
    text = Path(csv.__file__).read_text(encoding="utf-8")
    ids = model.tokenizer()(text)["input_ids"][: WINDOWS * LENGTH]
    return torch.tensor(ids).view(WINDOWS, LENGTH)


@dataclass(frozen=True)
class Dense:
    """The sound model: its text, what it makes of it, what it answers."""

    windows: Tensor
    text: TextMeasurement
    answers: ReferenceAnswers


@pytest.fixture(scope="module")
def dense() -> Dense:
    model = open_model(PYTINY, torch.float32)
    windows = windows_of(model)
    answers = reference_answers(model, windows[:4, :24], 6)
    return Dense(windows, measure_text(model, windows, keep=128), answers)


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    """A copy of the model, to be damaged."""
    return shutil.copytree(PYTINY, tmp_path / "artefact")


def damage(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def swap_layers(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if name.startswith("model.layers.3.")]:
        other = name.replace(".3.", ".4.")
        tensors[name], tensors[other] = tensors[other], tensors[name]


def zero_kv_head(layer: int, head: int) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        for which in "kv":
            rows = tensors[f"model.layers.{layer}.self_attn.{which}_proj.weight"]
            rows[head * HEAD_DIM : (head + 1) * HEAD_DIM] = 0

    return change


def put_nan(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.5.mlp.up_proj.weight"][7, 9] = torch.nan


def judged(folder: Path, dense: Dense) -> tuple[Estimate, Estimate, ParityResult]:
    """Perplexity ratio and divergence on the dense model's windows, and parity."""
    found = measure_text(
        open_model(folder, torch.float32), dense.windows, reference=dense.text.reference
    )
    assert found.window_divergences is not None
    ratio, divergence = compare_texts(
        dense.text.perplexity, found.perplexity, found.window_divergences
    )
    return ratio, divergence, measure_parity("hf", folder, dense.answers)


def test_a_copy_of_the_dense_model_is_the_dense_model(artefact: Path, dense: Dense) -> None:
    ratio, divergence, parity = judged(artefact, dense)
    assert (ratio.value, ratio.low, ratio.high) == (1.0, 1.0, 1.0)
    assert (divergence.value, divergence.low, divergence.high) == (0.0, 0.0, 0.0)
    assert parity.same and parity.compared > 20
    assert inspect(artefact).problems == ()


# Perplexity notices half of the 32 KV heads on so little text, divergence and parity notice all:
# of all, the model diverges least without the last one here.
@pytest.mark.parametrize(
    "fault, perplexity_tells",
    [(swap_layers, True), (zero_kv_head(0, 3), True), (zero_kv_head(6, 2), False)],
    ids=["layers swapped", "KV head zeroed", "KV head zeroed that hardly matters"],
)
def test_a_fault_in_the_weights_shows_in_divergence_and_parity_a_large_one_in_perplexity(
    fault: Callable[[dict[str, Tensor]], None],
    perplexity_tells: bool,
    artefact: Path,
    dense: Dense,
) -> None:
    damage(artefact, fault)
    ratio, divergence, parity = judged(artefact, dense)
    if perplexity_tells:
        assert ratio.low > 1
    assert divergence.low > 0.001
    assert not parity.same
    assert parity.error is None and parity.difference > 100 * parity.tolerance


def test_a_nan_in_a_weight_leaves_no_number(artefact: Path, dense: Dense) -> None:
    damage(artefact, put_nan)
    ratio, divergence, parity = judged(artefact, dense)
    for estimate in (ratio, divergence):
        assert all(map(math.isnan, (estimate.value, estimate.low, estimate.high)))
    assert not parity.same
    assert parity.error == "its log-probabilities are not finite"


def test_a_swapped_tokenizer_is_named(artefact: Path, dense: Dense) -> None:
    path = artefact / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    special = {token["content"] for token in content["added_tokens"]}
    names = [name for name in vocabulary if name not in special]
    ids = [vocabulary[name] for name in names]
    vocabulary.update(zip(names, reversed(ids), strict=True))
    path.write_text(json.dumps(content), encoding="utf-8")

    # Ids that another tokenizer made show nothing, text that its own one reads shows everything.
    ratio, _, parity = judged(artefact, dense)
    assert ratio.value == 1
    model = open_model(artefact, torch.float32)
    assert measure_text(model, windows_of(model)).perplexity.loss > dense.text.perplexity.loss + 2
    assert not parity.same
    assert parity.error is not None and "the tokenizer is another one" in parity.error


@pytest.mark.parametrize("dtype, name", [(torch.float32, "F32"), (torch.float16, "F16")])
def test_weights_in_another_dtype_than_the_config_says_are_a_problem_of_the_folder(
    dtype: torch.dtype, name: str, artefact: Path
) -> None:
    # Whatever loads them converts, so that only the files themselves tell.
    damage(artefact, lambda tensors: tensors.update({n: t.to(dtype) for n, t in tensors.items()}))
    (problem,) = inspect(artefact).problems
    assert problem.startswith("config.json says bfloat16; 56 tensors are of another dtype")
    assert problem.endswith(f"is {name}")
