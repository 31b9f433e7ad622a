# SPDX-License-Identifier: Apache-2.0
"""What a sweep delivers, asked of the command line and of the files it leaves."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]

#: What needs no search, so that a point takes a second.
QUICK = ["--set", "method={kind: uniform}", "--set", "search=null"]


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def reused(output: Path, folder: str) -> set[str]:
    steps = read(output / folder / "report" / "report.json")["cost"]["steps"]
    return {step["name"] for step in steps if step["reused"]}


@pytest.fixture(scope="module")
def swept(recipe: Path, prunec: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a sweep over two sparsities. Do not write to it."""
    output = tmp_path_factory.mktemp("swept")
    done = prunec("sweep", recipe, "--set", "target.sparsity=0.25,0.5", *QUICK, "--output", output)
    assert done.returncode == 0, done.stderr
    assert "Best that passes: target.sparsity=0.5" in done.stdout.replace("\n", " ")
    return output


def test_points_share_what_does_not_depend_on_them(swept: Path) -> None:
    assert reused(swept, "target.sparsity=0.25") == set()
    shared = {"calibration-tokens", "evaluation-tokens", "measure-dense"}
    assert reused(swept, "target.sparsity=0.5") == shared


def test_points_share_one_supernet_unless_each_is_to_have_its_own(
    recipe: Path, prunec: Run, tmp_path: Path
) -> None:
    varied = ["--set", "target.sparsity=0.25,0.5,0.625", "--set", "method.rounds=1"]
    done = prunec("sweep", recipe, *varied, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "share one supernet, around a sparsity of 0.5" in done.stderr
    for sparsity in (0.25, 0.625):
        report = read(tmp_path / f"target.sparsity={sparsity}" / "report" / "report.json")
        assert abs(report["pruned"]["sparsity"] - sparsity) < 0.02
        assert "method.centre=0.5" in report["command"]
    assert "supernet-1" in reused(tmp_path, "target.sparsity=0.625")
    plan = prunec("sweep", recipe, *varied, "--own-supernets", "--plan", "--json")
    assert "supernet-1" not in {step["name"] for step in json.loads(plan.stdout)["shared"]}


def test_a_sweep_leaves_its_builds_and_what_they_come_to(swept: Path, prunec: Run) -> None:
    content = read(swept / "sweep.json")
    assert content["best"] == "target.sparsity=0.5"
    assert [point["verdict"] for point in content["points"]] == ["passed", "passed"]
    for point in content["points"]:
        folder = swept / point["folder"]
        assert prunec("inspect", folder).returncode == 0
        report = read(folder / "report" / "report.json")
        assert report["pruned"] == point["pruned"]
        assert "--set target.sparsity=" in report["command"] and "sweep" not in report["command"]
    names = {path.name for path in swept.iterdir() if not path.name.startswith(".")}
    assert names >= {"sweep.json", "sweep.md", "sweep.html", "front.png", "front.svg"}


def test_its_points_can_be_compared(swept: Path, prunec: Run, tiny_llama: Any) -> None:
    points = [swept / "target.sparsity=0.25", swept / "target.sparsity=0.5"]
    done = prunec("compare", *points, tiny_llama(), "--json")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    rows = {row["key"]: row["values"] for row in content["rows"]}
    first, second, dense = (each["value"] for each in rows["parameters"])
    assert second < first < dense
    assert rows["perplexity.ratio"][2] is None and content["warnings"] == []
    wrong = prunec("compare", swept / "target.sparsity=0.24")
    assert wrong.returncode == 2
    assert "did you mean" in wrong.stderr and "target.sparsity=0.25" in wrong.stderr


def test_a_point_that_cannot_be_built_does_not_keep_the_others(
    recipe: Path, prunec: Run, tmp_path: Path
) -> None:
    settings = ["--set", "calibration.tokens=20000,1024", *QUICK]
    done = prunec("sweep", recipe, *settings, "--output", tmp_path, "--json")
    assert done.returncode == 3
    content = json.loads(done.stdout)
    broken, sound = content["points"]
    assert broken["verdict"] == "not built" and "the source holds" in broken["error"]
    assert sound["verdict"] == "passed" and content["best"] == "calibration.tokens=1024"
    assert content == read(tmp_path / "sweep.json")


def test_gates_that_no_point_passes_are_exit_code_1(
    recipe: Path, prunec: Run, tmp_path: Path
) -> None:
    harsh = ["--set", "validate.perplexity.max_ratio=0.5,0.6", *QUICK]
    done = prunec("sweep", recipe, *harsh, "--output", tmp_path)
    assert done.returncode == 1, done.stderr
    assert "No point passes all its gates." in done.stdout


def test_all_mistakes_are_told_before_anything_is_built(
    recipe: Path, prunec: Run, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    settings = ["--set", "target.sparsity=0.25,1.5", "--set", "target.multiple_of=8,0"]
    done = prunec("sweep", recipe, *settings, "--output", output)
    assert done.returncode == 2
    assert "sparsity is 1.5" in done.stderr and "multiple_of is 0" in done.stderr
    assert "(at target.sparsity=1.5, target.multiple_of=8 and 1 more)" in done.stderr
    assert not output.exists()


def test_what_cannot_be_measured_is_told_before_anything_is_built(
    recipe: Path, prunec: Run, tmp_path: Path
) -> None:
    settings = ["--set", "target.sparsity=0.25,0.5", *QUICK]
    settings += ["--set", "validate.speed={runtimes: [vllm]}", "--set", "export=[{kind: vllm}]"]
    with mock.patch("prunec.compiler.preflight.find_spec", return_value=None):
        done = prunec("sweep", recipe, *settings, "--output", tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("vllm is not installed") == 1 and "(at " not in done.stderr
    assert not any(tmp_path.glob("target*"))


def test_the_plan_shows_what_is_shared_and_reads_no_weight(
    recipe: Path, prunec_process: Run
) -> None:
    settings = ["--set", "target.sparsity=0.25,0.5,0.50"]
    done = prunec_process(
        "sweep",
        recipe,
        *settings,
        "--plan",
        "--json",
        epilogue="import sys; assert not {'torch', 'transformers'} & sys.modules.keys()",
    )
    assert done.returncode == 0, done.stderr
    assert "target.sparsity=0.50 asks for the same build as target.sparsity=0.5" in done.stderr
    content = json.loads(done.stdout)
    first, second = content["points"]
    shared = {step["name"]: step["points"] for step in content["shared"]}
    texts = ["calibration-tokens", "search-tokens", "evaluation-tokens"]
    assert shared == dict.fromkeys([*texts, "teacher", "supernet-1", "measure-dense"], 2)
    spared = sum(step["token_forwards"] for step in content["shared"])
    assert first["new_token_forwards"] == first["token_forwards"]
    assert second["new_token_forwards"] == second["token_forwards"] - spared
    assert content["token_forwards"] == first["token_forwards"] + second["new_token_forwards"]


def test_folders_that_no_sweep_has_made_are_left_alone(
    recipe: Path, prunec: Run, tmp_path: Path
) -> None:
    precious = tmp_path / "target.sparsity=0.5" / "hf" / "notes.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    done = prunec(
        "sweep", recipe, "--set", "target.sparsity=0.25,0.5", *QUICK, "--output", tmp_path
    )
    assert done.returncode == 3 and "is not of a build" in done.stderr
    assert precious.read_text() == "mine"
