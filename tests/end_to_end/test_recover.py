# SPDX-License-Identifier: Apache-2.0
"""Recovery between a method and the exports, through the command line."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM

from prunec.compiler import preflight
from prunec.compiler.recovery.lora import recover_lora
from prunec.compiler.steps.export import pruned_tensors

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Hashes = Callable[[Path], dict[str, str]]
BeforeWrite = Callable[..., AbstractContextManager[None]]

SHORT = {
    "source": {"kind": "text", "files": ["fit-*.txt"]},
    "sequence_length": 32,
    "tokens": 1024,
    "held_out_tokens": 256,
    "batch_tokens": 128,
}
LORA = SHORT | {"kind": "lora", "looks": 3}
BLOCKWISE = SHORT | {"kind": "blockwise", "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def quick(recipe: Path) -> Path:
    """The recipe with a method that is quick and leaves much to recover."""
    content = json.loads(recipe.read_text(encoding="utf-8"))
    content["method"] = {"kind": "magnitude"}
    del content["search"], content["calibration"]
    path = recipe.parent / "quick.yaml"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def plain(quick: Path, prunec: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build without recovery. Do not write to it."""
    output = tmp_path_factory.mktemp("plain")
    assert prunec("build", quick, "--output", output).returncode == 0
    return output


def _build(prunec: Run, recipe: Path, output: Path, recover: dict[str, Any], *more: str) -> Any:
    asked = yaml.safe_dump(recover, default_flow_style=True, width=1000).strip()
    return prunec("build", recipe, "--output", output, "--set", f"recover={asked}", *more)


def _report(output: Path) -> Any:
    return json.loads((output / "report" / "report.json").read_text(encoding="utf-8"))


def _shapes(output: Path) -> dict[str, list[int]]:
    with safe_open(output / "hf" / "model.safetensors", framework="pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("recover", [LORA, BLOCKWISE], ids=["lora", "blockwise"])
def test_recovered_models_are_ordinary_smaller_ones(
    quick: Path, plain: Path, prunec: Run, hashes: Hashes, tmp_path: Path, recover: dict[str, Any]
) -> None:
    done = _build(prunec, quick, tmp_path, recover)
    assert done.returncode == 0, done.stderr
    line = re.search(r"recover: held-out loss (\S+) → (\S+) in ([\d,]+) tokens", done.stderr)
    assert line is not None, done.stderr
    found = _report(tmp_path)["recovery"]
    assert found["kept"] and found["after"] < found["before"]
    assert [line[1], line[2]] == [f"{found[name]:.4f}" for name in ("before", "after")]
    assert found["kind"] == recover["kind"] and found["tokens"] == recover["tokens"]
    assert found["points"][0]["held_out"] == found["before"]
    assert found["points"][-1]["tokens"] == recover["tokens"]
    assert "divergence from the dense model" in found["loss"]

    card = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    assert "Then trained back by" in card and "fit-1.txt" in card

    assert _shapes(tmp_path) == _shapes(plain)
    weights = "model.safetensors"
    assert hashes(tmp_path)[weights] != hashes(plain)[weights]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert not [name for name in model.state_dict() if "lora" in name]
    before, after = (_report(output)["cost"]["token_forwards"] for output in (plain, tmp_path))
    assert after > before
    assert not list((tmp_path / ".store").rglob("work"))


@pytest.mark.parametrize(
    ("recover", "files"), [(LORA, 2), (BLOCKWISE, 3)], ids=["lora", "blockwise"]
)
def test_a_recovery_may_be_interrupted_again_and_again(
    quick: Path,
    prunec: Run,
    hashes: Hashes,
    before_write: BeforeWrite,
    tmp_path: Path,
    recover: dict[str, Any],
    files: int,
) -> None:
    """Each time when it saves how far it has come for the `files`-th time."""
    assert _build(prunec, quick, tmp_path / "whole", recover).returncode == 0
    output = tmp_path / "out"
    for _ in range(2):
        seen = 0

        def interrupt(target: Path) -> None:
            nonlocal seen
            seen += target.parent.name == "work"
            if seen == files:
                signal.raise_signal(signal.SIGINT)

        with before_write(interrupt):
            done = _build(prunec, quick, output, recover)
        assert done.returncode == 128 + signal.SIGINT, done.stderr
        assert list(output.rglob("work/*.safetensors"))
    assert _build(prunec, quick, output, recover).returncode == 0
    assert hashes(output) == hashes(tmp_path / "whole")
    assert _report(output)["recovery"] == _report(tmp_path / "whole")["recovery"]


def test_a_recovery_that_does_harm_leaves_the_layers_and_says_so(
    quick: Path, plain: Path, prunec: Run, hashes: Hashes, tmp_path: Path
) -> None:
    absurd = LORA | {"divergence": 0.0, "hidden": 1.0, "learning_rate": 5.0, "patience": 1}
    done = _build(prunec, quick, tmp_path, absurd)
    assert done.returncode == 0, done.stderr
    assert "recover: of no use, the layers stay as they were" in done.stderr
    found = _report(tmp_path)["recovery"]
    assert not found["kept"] and found["stopped"]
    weights = "model.safetensors"
    assert hashes(tmp_path)[weights] == hashes(plain)[weights]
    assert "Then trained back" not in (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    assert "of no use" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    steps = [step["name"] for step in _report(tmp_path)["cost"]["steps"]]
    assert "recovery-teacher" not in steps  # nothing in the loss reads it


def test_what_the_judge_does_not_keep_is_not_written_though_training_changed_it(
    quick: Path, plain: Path, prunec: Run, hashes: Hashes, tmp_path: Path
) -> None:
    """As where the gain is lost in rounding to the dtype that is written."""

    def refused(*args: Any, **options: Any) -> Any:
        found = recover_lora(*args, **options)
        assert found.result.kept
        return replace(found, result=replace(found.result, kept=False))

    with mock.patch("prunec.compiler.steps.recover.recover_lora", refused):
        assert _build(prunec, quick, tmp_path, LORA).returncode == 0
    weights = "model.safetensors"
    assert hashes(tmp_path)[weights] == hashes(plain)[weights]


def test_the_model_that_adapters_are_put_on_is_in_memory_once(
    quick: Path, prunec: Run, tmp_path: Path
) -> None:
    given: list[weakref.ref[Tensor]] = []

    def watched(*arguments: Any) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in pruned_tensors(*arguments):
            assert not any(one() is not None for one in given[:-1]), name
            copy = tensor.clone()
            given.append(weakref.ref(copy))
            yield name, copy
            del copy

    with mock.patch("prunec.compiler.steps.export.pruned_tensors", watched):
        assert _build(prunec, quick, tmp_path, LORA).returncode == 0
    assert len(given) > 20


@pytest.mark.parametrize("held_out", [None, {"kind": "text", "files": ["fit-*.txt"]}])
def test_text_that_is_held_out_is_not_trained_on(
    quick: Path, prunec: Run, held_out: dict[str, Any] | None
) -> None:
    asked = yaml.safe_dump(LORA | {"held_out": held_out}, default_flow_style=True, width=1000)
    done = prunec("plan", quick, "--json", "--set", f"recover={asked.strip()}")
    assert done.returncode == 0, done.stderr
    steps = {step["name"]: step for step in json.loads(done.stdout)["steps"]}
    fit, held = (steps[name]["params"] for name in ("recovery-tokens", "held-out-tokens"))
    assert (fit["windows"], held["windows"]) == (32, 8)
    assert fit["order"] == held["order"] and fit["deal"]["shares"] == held["deal"]["shares"]
    assert fit["deal"]["own"] != held["deal"]["own"]


def test_the_faithful_combination_is_recovered_too(
    recipe: Path, prunec: Run, tmp_path: Path
) -> None:
    """As Týr was published, query heads lie unevenly on KV heads."""
    done = _build(
        prunec,
        recipe,
        tmp_path,
        LORA | {"ranks": "importance", "labels": 1.0},
        "--set",
        "method={kind: tyr, faithful: true, rounds: 1, offspring: 4}",
        "--set",
        "search.budget.token_forwards=30000",
        "--set",
        "search.tokens=64",
    )
    assert done.returncode == 0, done.stderr
    report = _report(tmp_path)
    assert report["recovery"]["kept"]


def test_without_peft_it_is_refused_before_anything_is_begun(
    quick: Path, prunec: Run, tmp_path: Path
) -> None:
    with mock.patch.object(preflight, "find_spec", lambda name: None):
        done = _build(prunec, quick, tmp_path / "out", LORA)
    assert done.returncode == 2
    assert "recover.kind is lora, and peft is not installed" in done.stderr
    assert "pip install 'prunec[recover]'" in done.stderr
    assert not (tmp_path / "out" / ".store").exists()
