# SPDX-License-Identifier: Apache-2.0
"""Method `importance` from recipe to artefact: what it plans, and what its fields do."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prunec.compiler.model.checkpoint import Checkpoint
from prunec.compiler.model.folder import facts_from_folder

Run = Callable[..., "subprocess.CompletedProcess[str]"]

BARE = ["--set", "search=null", "--set", "validate=null"]


def _method(**fields: Any) -> list[str]:
    return ["--set", f"method={json.dumps({'kind': 'importance'} | fields)}", *BARE]


@pytest.fixture(scope="module")
def build(
    recipe: Path, prunec: Run, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """The artefact of a build; builds share what is alike."""
    output = tmp_path_factory.mktemp("importance")

    def run(*settings: str, **fields: Any) -> dict[str, torch.Tensor]:
        done = prunec("build", recipe, "--output", output, *_method(**fields), *settings)
        assert done.returncode == 0, done.stderr
        done = prunec("inspect", output, "--json")
        assert (done.returncode, json.loads(done.stdout)["problems"]) == (0, [])
        return load_file(output / "hf" / "model.safetensors")

    return run  # type: ignore[return-value]


def _steps(prunec: Run, recipe: Path, **fields: Any) -> dict[str, Any]:
    done = prunec("plan", recipe, "--json", *_method(**fields))
    assert done.returncode == 0, done.stderr
    return {step["name"]: step for step in json.loads(done.stdout)["steps"]}


def test_only_what_metrics_need_is_collected(recipe: Path, prunec: Run) -> None:
    def collected(**fields: Any) -> tuple[bool, bool] | None:
        step = _steps(prunec, recipe, **fields).get("statistics")
        return step and (step["params"]["with_gram"], step["params"]["with_gradients"])

    assert collected(metrics={"magnitude_l1": 1, "obs": 0}) is None
    assert collected() == (False, False)  # wanda
    assert collected(metrics={"obs": 1}) == (True, False)
    assert collected(metrics={"taylor_first": 1, "reconstruction": 2}) == (True, True)
    assert collected(metrics={"magnitude_l1": 1}, allocation="angular") == (False, False)
    forwards = {
        metric: _steps(prunec, recipe, metrics={metric: 1})["statistics"]["cost"]["token_forwards"]
        for metric in ("wanda", "taylor_first")
    }
    assert forwards == {"wanda": 1024, "taylor_first": 4096}


def test_what_is_refitted_is_the_last_projections_alone(build: Callable[..., Any]) -> None:
    metrics = {"taylor_vector": 1, "wanda": 0.5}
    sliced, fitted = (build(metrics=metrics, refit=refit) for refit in (False, True))
    changed = {name for name in sliced if not torch.equal(sliced[name], fitted[name])}
    last = ("o_proj.weight", "down_proj.weight")
    assert changed == {name for name in sliced if name.endswith(last)}


def test_without_refit_no_weight_that_stays_is_changed(
    build: Callable[..., Any], tiny_llama: Callable[..., Path]
) -> None:
    tensors = build("--set", "calibration=null", metrics={"magnitude_l2": 1}, refit=False)
    dense = Checkpoint(tiny_llama(), facts_from_folder(tiny_llama()))
    for layer in range(3):
        old = {name: tensor.bfloat16() for name, tensor in dense.layer(layer).items()}
        name = "mlp.up_proj.weight"
        rows = {tuple(row.tolist()) for row in old[name]}
        assert rows.issuperset(map(tuple, tensors[f"model.layers.{layer}.{name}"].tolist()))


def test_magnitude_is_the_metric_of_that_name_without_text(
    recipe: Path, prunec: Run, tmp_path: Path, build: Callable[..., Any]
) -> None:
    tensors = build("--set", "calibration=null", metrics={"magnitude_l2": 1}, refit=False)
    settings = ["--set", "method={kind: magnitude}", "--set", "calibration=null", *BARE]
    done = prunec("build", recipe, "--output", tmp_path, *settings)
    assert done.returncode == 0, done.stderr
    same = load_file(tmp_path / "hf" / "model.safetensors")
    assert same.keys() == tensors.keys()
    assert all(torch.equal(same[name], tensors[name]) for name in same)


def test_layers_keep_what_their_influence_says(
    recipe: Path, prunec: Run, build: Callable[..., Any]
) -> None:
    def widths(**fields: Any) -> list[int]:
        tensors = build(metrics={"wanda": 1}, refit=False, **fields)
        return [len(tensors[f"model.layers.{i}.mlp.up_proj.weight"]) for i in range(3)]

    uniform, angular = widths(), widths(allocation="angular", spread=0.4)
    assert len({*uniform}) < len({*angular})
    assert widths(allocation="influence", spread=0) == uniform
    later, outer = widths(slope=0.4), widths(bend=0.6)
    assert later[0] < later[1] < later[2]
    assert outer[1] < min(outer[0], outer[2])
    # What attention takes, the MLPs give.
    assert sum(widths(attention=2.0)) < sum(uniform) < sum(widths(attention=0.5))


def test_a_build_that_was_killed_goes_on_to_the_same_bytes(
    recipe: Path,
    prunec: Run,
    tmp_path: Path,
    build: Callable[..., Any],
    interrupt_at_write: Callable[[int], Any],
) -> None:
    fields = {"metrics": {"taylor_mixed": 1, "obs": 1}, "allocation": "influence"}
    whole = build(**fields)
    command = ["build", recipe, "--output", tmp_path, *_method(**fields)]
    for number in (9, 8, 7):  # in statistics, then later and later
        with interrupt_at_write(number):
            assert prunec(*command).returncode == 130
    done = prunec(*command)
    assert done.returncode == 0, done.stderr
    again = load_file(tmp_path / "hf" / "model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"refit": False, "dense_target": 0.2}, "method.dense_target is not read with `refit: fal"),
        ({"spread": 2.0}, "method.spread is not read with `allocation: uniform`"),
        (
            {"metrics": {"wanda": 1}, "refit": False, "damping": 0.1},
            "method.damping is not read with `refit: false`",
        ),
    ],
)
def test_what_would_be_ignored_is_refused(
    fields: dict[str, Any], sentence: str, recipe: Path, prunec: Run
) -> None:
    done = prunec("plan", recipe, *_method(**fields))
    assert done.returncode == 2
    assert sentence in done.stderr


def test_layers_that_are_alike_cannot_be_allocated_differently(recipe: Path, prunec: Run) -> None:
    settings = ["--set", "target.layout=uniform"]
    done = prunec("plan", recipe, *_method(allocation="angular"), *settings)
    assert done.returncode == 2
    assert "method.allocation is angular" in done.stderr
    done = prunec("plan", recipe, *_method(), *settings)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("model_type", ["phi3", "gemma2", "olmo2"])
def test_families_are_scored_refitted_and_written(
    model_type: str,
    recipe: Path,
    prunec: Run,
    tiny_family: Callable[..., Path],
    tmp_path: Path,
) -> None:
    fields = {"metrics": {"obs": 1, "taylor_first": 1, "cfsp": 1}, "allocation": "angular"}
    source = ["--set", f"model.source={tiny_family(model_type)}"]
    done = prunec("build", recipe, "--output", tmp_path, *_method(**fields), *source)
    assert done.returncode == 0, done.stderr
    done = prunec("inspect", tmp_path, "--json")
    assert (done.returncode, json.loads(done.stdout)["problems"]) == (0, [])
