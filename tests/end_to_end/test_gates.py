# SPDX-License-Identifier: Apache-2.0
"""Builds judged by what their recipe asks for: verdicts, exit codes, and what is left behind."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Hashes = Callable[[Path], dict[str, str]]

#: What needs no search, so that a build takes a second.
QUICK = ("method={kind: uniform}", "search=null")
TEXT = "source: {kind: text, files: [%s]}, sequence_length: 32, tokens: 512"
HOME = TEXT % "judge.txt" + ", max_ratio: 1000.0, max_divergence: 50.0"
AWAY = TEXT % "away.txt" + ", max_perplexity: 100000.0"
PARITY = "{prompts: 2, new_tokens: 4}"
CHECKS = (
    f"validate={{perplexity: {{{HOME}}}, elsewhere: {{away: {{{AWAY}}}}}, parity: {PARITY}}}",
)

needs_lm_eval = pytest.mark.skipif(
    not find_spec("lm_eval"), reason="lm-eval is not installed: make setup"
)


def options(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def report_of(output: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((output / "report" / "report.json").read_text("utf-8"))
    return report


def gates_of(output: Path) -> dict[str, dict[str, Any]]:
    return {gate["name"]: gate for gate in report_of(output)["gates"]}


def flat(text: str) -> str:
    """Without the line breaks that a table's width made."""
    return " ".join(text.split())


@pytest.fixture(scope="module")
def judged(recipe: Path, prunec: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build with gates on texts, size and parity, all held. Do not write to it."""
    away = random.Random("away").choices(("list", "other", "text", "value", "none"), k=900)
    (recipe.parent / "away.txt").write_text(" ".join(away), encoding="utf-8")
    output = tmp_path_factory.mktemp("judged")
    size = "validate.size={max_bytes_ratio: 2.0}"
    done = prunec("build", recipe, "--output", output, *options(*QUICK, *CHECKS, size))
    assert done.returncode == 0, done.stderr
    assert "passed perplexity ratio on" not in done.stdout, "no such gate was asked for"
    for said in ("perplexity ratio", "perplexity on away", "the hf artefact answers as the model"):
        assert f"passed {said}" in flat(done.stdout)
    return output


@pytest.fixture
def copied(judged: Path, tmp_path: Path) -> Path:
    """The same build, to go on with."""
    return shutil.copytree(judged, tmp_path / "copy")


def test_every_gate_is_in_the_report_in_junit_and_in_the_model_card(judged: Path) -> None:
    report = report_of(judged)
    assert report["passed"] is True
    names = [gate["name"] for gate in report["gates"]]
    assert names == [
        "perplexity.max_ratio",
        "perplexity.max_divergence",
        "elsewhere.away.max_perplexity",
        "size.hf.max_bytes_ratio",
        "parity.hf",
    ]
    assert {gate["verdict"] for gate in report["gates"]} == {"passed"}
    cases = ET.parse(judged / "report" / "junit.xml").getroot().iter("testcase")
    assert [case.get("name") for case in cases] == names
    card = (judged / "hf" / "README.md").read_text("utf-8")
    section = card.split("\n## Measured\n")[1].split("\n## ")[0]
    assert "**Passed.** All 5 gates passed." in section
    for gate in report["gates"]:
        assert f"- passed: {gate['message']}" in section
    assert report["command"] in section


def test_judging_again_measures_nothing_and_leaves_the_same_bytes(
    judged: Path, copied: Path, recipe: Path, prunec: Run, hashes: Hashes
) -> None:
    size = "validate.size={max_bytes_ratio: 2.0}"
    done = prunec("build", recipe, "--output", copied, *options(*QUICK, *CHECKS, size))
    assert done.returncode == 0, done.stderr
    assert all(step["reused"] for step in report_of(copied)["cost"]["steps"])
    assert hashes(copied) == hashes(judged)


def test_a_gate_that_is_too_tight_is_exit_code_1_and_told_everywhere(
    copied: Path, recipe: Path, prunec: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    tight = "validate.perplexity.max_divergence=0.001"
    done = prunec("build", recipe, "--output", copied, *options(*QUICK, *CHECKS, tight))
    assert done.returncode == 1
    gate = gates_of(copied)["perplexity.max_divergence"]
    assert (gate["verdict"], gate["passed"]) == ("failed", False)
    assert "exceeds 0.001" in gate["message"]
    assert f"failed {gate['message']}" in flat(done.stdout)
    for told in (summary, copied / "report" / "report.md", copied / "hf" / "README.md"):
        assert gate["message"] in told.read_text("utf-8")
    root = ET.parse(copied / "report" / "junit.xml").getroot()
    assert root.get("failures") == "1"
    assert [failure.get("message") for failure in root.iter("failure")] == [gate["message"]]


def test_a_card_that_was_edited_is_kept_and_said_to_be(
    copied: Path, recipe: Path, prunec: Run
) -> None:
    card = copied / "hf" / "README.md"
    card.write_text("My own words.\n")
    size = "validate.size={max_bytes_ratio: 2.0}"
    build = ("build", recipe, "--output", copied, *options(*QUICK, *CHECKS, size))
    done = prunec(*build)
    assert done.returncode == 0
    assert f"{card} was edited and is kept" in " ".join(done.stderr.split())
    assert prunec("verify", copied).returncode == 0
    (copied / "hf" / "model.safetensors").write_bytes(b"")
    done = prunec(*build)
    assert done.returncode == 3 and "README.md was edited" in done.stderr
    assert card.read_text() == "My own words.\n"


def test_a_card_is_told_of_the_verdict_though_a_kill_came_between(
    copied: Path, recipe: Path, prunec: Run, before_write: Callable[..., Any]
) -> None:
    """The card is written, the manifest is not: the next build knows the card for its own."""

    def interrupt(target: Path) -> None:
        if target.name == "manifest.json":
            signal.raise_signal(signal.SIGINT)

    tight = "validate.perplexity.max_divergence=0.001"
    build = ("build", recipe, "--output", copied, *options(*QUICK, *CHECKS, tight))
    with before_write(interrupt):
        assert prunec(*build).returncode == 130
    card = copied / "hf" / "README.md"
    assert "exceeds 0.001" in card.read_text() and not (copied / "manifest.json").exists()
    done = prunec(*build)
    assert done.returncode == 1 and "was edited" not in done.stderr
    assert "exceeds 0.001" in card.read_text()


@pytest.mark.parametrize(("says", "code"), [("fail", 1), ("pass", 0)])
def test_what_becomes_of_a_gate_within_its_noise_is_the_recipes_to_say(
    says: str, code: int, copied: Path, recipe: Path, prunec: Run
) -> None:
    ratio = report_of(copied)["perplexity"]["ratio"]
    within = (ratio["low"] + ratio["value"]) / 2
    unsure = (f"validate.perplexity.max_ratio={within}", f"validate.on_inconclusive={says}")
    done = prunec("build", recipe, "--output", copied, *options(*QUICK, *CHECKS, *unsure))
    assert done.returncode == code, done.stderr
    gate = gates_of(copied)["perplexity.max_ratio"]
    assert (gate["verdict"], gate["passed"]) == ("inconclusive", code == 0)
    assert re.search(r"about `tokens: \d+` instead of 512 would settle it", gate["message"])


def test_a_search_that_ends_too_far_away_ends_the_build(
    recipe: Path, prunec: Run, tmp_path: Path
) -> None:
    lost = "validate.abort_if={divergence_above: 0.000001}"
    short = ("method={kind: tyr, rounds: 1, offspring: 4}", "search.budget.token_forwards=1600")
    assert prunec("build", recipe, "--output", tmp_path, *options(*short)).returncode == 0
    assert (tmp_path / "hf").exists()  # of another recipe then: it must not pass for this one's
    for _ in range(2):
        done = prunec("build", recipe, "--output", tmp_path, *options(*short, lost))
        assert done.returncode == 1, done.stderr
        assert "the recipe gives up here (validate.abort_if)" in done.stderr
        assert not (tmp_path / "hf").exists()
        report = report_of(tmp_path)
        assert report["passed"] is False
        [gate] = report["gates"]
        assert gate["name"] == "abort_if.divergence_above" and gate["verdict"] == "failed"
        assert "exceeds 1e-06" in gate["message"]
        assert gate["message"] in flat(done.stdout)
        assert "resolve" not in {step["name"] for step in report["cost"]["steps"]}


@needs_lm_eval
def test_a_task_that_there_is_not_is_told_at_its_line_before_anything_is_built(
    recipe: Path, prunec: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(recipe.parent))
    content = json.loads(recipe.read_text("utf-8"))
    content["validate"]["tasks"] = {"names": ["python_nmaes"]}
    wrong = recipe.parent / "wrong.yaml"
    wrong.write_text(json.dumps(content, indent=2), encoding="utf-8")
    done = prunec("build", wrong, "--output", tmp_path / "out")
    assert done.returncode == 2
    line = next(n for n, text in enumerate(wrong.read_text().splitlines(), 1) if '"names"' in text)
    told, hint, annotation = done.stderr.strip().splitlines()[-3:]
    assert told.startswith(f"{wrong}:{line}:")
    assert "there is no task 'python_nmaes'" in told
    assert "python_names" in hint
    assert annotation.startswith(f"::error file=wrong.yaml,line={line},")
    assert "python_nmaes" in annotation
    assert not (tmp_path / "out").exists()


def test_a_chat_template_that_there_is_not_is_told_by_the_plan(
    recipe: Path, prunec: Run, tmp_path: Path
) -> None:
    asked = "validate.tasks={names: [python_names], chat_template: true}"
    done = prunec("plan", recipe, *options(*QUICK, asked))
    assert done.returncode == 2
    assert "validate.tasks.chat_template is true" in flat(done.stderr)
    assert "has no chat template" in flat(done.stderr)


@needs_lm_eval
def test_a_task_that_scores_nothing_fails_its_gate(
    copied: Path, recipe: Path, prunec: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "empty.yaml").write_text(
        "task: empty\ncustom_dataset: !function made.nothing\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: text\ndoc_to_choice: [a, b]\n"
        "doc_to_target: 0\nmetric_list: [{metric: acc}]\n"
    )
    (folder / "made.py").write_text(
        "from datasets import Dataset, DatasetDict\n"
        "def nothing(**_): return DatasetDict(test=Dataset.from_dict({'text': []}))\n"
    )
    asked = f"names: [empty], include: [{folder}], min_recovery: 0.01, max_drop: {{empty: 1.0}}"
    tasks = (f"validate.tasks={{{asked}}}", "validate.on_inconclusive=pass")
    done = prunec("build", recipe, "--output", copied, *options(*QUICK, *CHECKS, *tasks))
    assert done.returncode == 1, done.stderr
    gates = gates_of(copied)
    for name, what in (("min_recovery", "recovery"), ("max_drop", "drop")):
        gate = gates[f"tasks.empty.{name}"]
        assert (gate["verdict"], gate["measured"]) == ("failed", None)
        assert gate["message"].startswith(f"{what} on empty was not measured: ")
    assert gates["perplexity.max_ratio"]["verdict"] == "passed"
