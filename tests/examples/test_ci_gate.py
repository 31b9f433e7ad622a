# SPDX-License-Identifier: Apache-2.0
"""The example of a CI gate: its workflow's own shell steps, run as they are written.

Left out is the step that installs prunec, which is what is being tested; GitHub's own actions
cannot run here. Settings that make it quick go in where the workflow lets its users put theirs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from prunec.compiler.recipe_file import load_recipe

EXAMPLE = Path(__file__).parents[2] / "examples" / "ci-gate"
#: A model and texts so small that the gates of a release are not for them.
QUICK = {
    "method.kind": "uniform",
    "search": "null",
    "target.sparsity": "0.125",
    "calibration.tokens": "8192",
    "validate.abort_if": "null",
    "validate.perplexity.tokens": "4096",
    "validate.tasks.names": "[python_brackets]",
    "validate.tasks.limit": "16",
    "validate.tasks.min_recovery": "0.2",
    "validate.size": "null",
    "validate.parity.new_tokens": "4",
}


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    workflow = yaml.safe_load((EXAMPLE / "workflow.yml").read_text(encoding="utf-8"))
    found: dict[str, Any] = workflow["jobs"]["prune"]
    return found


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's repository, checked out."""
    folder = tmp_path_factory.mktemp("workspace")
    for name in ("recipe.yaml", "README.md"):
        shutil.copy(EXAMPLE / name, folder)
    return folder


def run(job: dict[str, Any], workspace: Path, settings: dict[str, str]) -> tuple[int, str]:
    """Run the job's shell steps until one fails, as a runner does: exit code and summary."""
    [name] = [name for name, value in job["env"].items() if "inputs.arguments" in value]
    summary = workspace / "summary.md"
    summary.unlink(missing_ok=True)
    scripts = Path(sys.executable).parent  # where the step that is left out puts the commands
    environment = {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "GITHUB_ACTIONS": "true",
        "GITHUB_WORKSPACE": str(workspace),
        "GITHUB_STEP_SUMMARY": str(summary),
        "HF_HUB_OFFLINE": "1",
        name: " ".join(f"--set {key}={value}" for key, value in settings.items()),
    }
    steps = [step for step in job["steps"] if "run" in step and step["name"] != "Install"]
    assert [step["name"] for step in steps] == ["Fetch the dense model", "Prune and judge"]
    code = 0
    for number, step in enumerate(steps):
        if number == 0 and (workspace / "model").exists():
            shutil.rmtree(workspace / "model")  # a checkout starts without
        script = workspace.parent / "step.sh"
        script.write_text(step["run"], encoding="utf-8")
        code = subprocess.run(["bash", "-e", script], cwd=workspace, env=environment).returncode
        if code:
            break
    return code, summary.read_text(encoding="utf-8") if summary.exists() else ""


@pytest.mark.skipif(not find_spec("lm_eval"), reason="lm-eval is not installed: make setup")
def test_the_job_is_as_green_or_red_as_the_gates(job: dict[str, Any], workspace: Path) -> None:
    code, summary = run(job, workspace, QUICK)
    assert code == 0, summary
    report = json.loads((workspace / "build/gate/report/report.json").read_text("utf-8"))
    asked = {gate["name"].split(".")[0] for gate in report["gates"]}
    assert asked == {"perplexity", "elsewhere", "tasks", "parity"}
    assert report["passed"] is True
    for gate in report["gates"]:
        assert gate["message"] in summary

    # Another runner has the cache only, and makes nothing again but the files.
    for folder in ("hf", "report"):
        shutil.rmtree(workspace / "build" / "gate" / folder)
    (workspace / "build" / "gate" / "manifest.json").unlink()
    code, summary = run(job, workspace, QUICK | {"validate.perplexity.max_ratio": "0.5"})
    assert code == 1
    assert "exceeds 0.5" in summary
    report = json.loads((workspace / "build/gate/report/report.json").read_text("utf-8"))
    made = [step["name"] for step in report["cost"]["steps"] if not step["reused"]]
    assert made == ["export-hf"]


def test_what_later_steps_take_is_what_a_build_leaves(job: dict[str, Any]) -> None:
    steps = {step.get("uses", step.get("name", "")): step for step in job["steps"]}
    build = next(step["run"] for step in job["steps"] if step.get("name") == "Prune and judge")
    assert "--output build/gate" in build
    restore, save = (step for name, step in steps.items() if name.startswith("actions/cache/"))
    assert restore["with"]["path"] == save["with"]["path"] == "build/gate/.store"
    assert restore["with"]["key"] == save["with"]["key"]
    always = [step for step in job["steps"] if step.get("if") == "always()"]
    paths = " ".join(path for step in always for path in map(str, step["with"].values()))
    for path in ("build/gate/.store", "build/gate/report", "build/gate/report/junit.xml"):
        assert path in paths


def test_the_recipe_asks_for_every_kind_of_gate(workspace: Path, tmp_path: Path) -> None:
    here = shutil.copytree(workspace, tmp_path / "here")
    (here / "model").mkdir(exist_ok=True)
    validation = load_recipe(here / "recipe.yaml").validation
    assert validation is not None and validation.on_inconclusive == "fail"
    assert validation.perplexity is not None and validation.perplexity.max_ratio
    assert validation.elsewhere["prose"].max_ratio
    assert validation.tasks is not None and validation.tasks.min_recovery
    assert validation.size is not None and validation.size.max_bytes_ratio
    assert validation.parity is not None and validation.abort_if is not None
