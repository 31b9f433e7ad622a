# SPDX-License-Identifier: Apache-2.0
"""Settings are tuned on shared statistics, and what was found best is what prunes the model."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Hashes = Callable[[Path], dict[str, str]]

#: A small space, of few trials, of the whole calibration text unless a test says otherwise.
METHOD = {
    "kind": "adapruner",
    "trials": 4,
    "calibration": {"loss_quantiles": 1, "groups": 1},
}

#: Put before a command: the process dies at the third trial, when part of it is done.
DIE_IN_THIRD_TRIAL = """
import os, signal
from prunec.compiler.tuning import objective
count = 0
looks = objective.Judge.looks
def deadly(self, settings):
    global count
    count += 1
    for look in looks(self, settings):
        if count == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        yield look
objective.Judge.looks = deadly
"""


@pytest.fixture
def asked(recipe: Path, tmp_path: Path) -> Callable[..., Path]:
    """The recipe beside its text, with a method of this kind; other sections by their names."""

    def write(method: dict[str, Any], **sections: Any) -> Path:
        content = json.loads(recipe.read_text(encoding="utf-8"))
        learns = {} if method.get("sampler") == "random" else {"startup_trials": 2}
        content["method"] = METHOD | learns | method
        if method.get("inner") != "tyr":
            content["search"] = {"tokens": 256}
        content |= {name: content.get(name, {}) | section for name, section in sections.items()}
        del content["validate"]["completion"]
        path = recipe.with_name(f"{tmp_path.name}-{len(method)}.yaml")
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return write


def made(output: Path, step: str) -> dict[str, Any]:
    """What a step of a build has found."""
    manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    record = output / ".store" / manifest["steps"][step] / "finished.json"
    found = json.loads(json.loads(record.read_text(encoding="utf-8"))["value"])["found"]
    assert isinstance(found, dict)
    return found


def tensor(output: Path, step: str, name: str) -> torch.Tensor:
    manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    (path,) = (output / ".store" / manifest["steps"][step]).glob(f"{name}.*.safetensors")
    return load_file(path)[name]


def divergence_of(path: Path, output: Path) -> float:
    """Of the written model from the dense one, on the text that trials are judged on."""
    ids = tensor(output, "search-tokens", "ids")

    def log_probs(folder: str | Path) -> torch.Tensor:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=True
        )
        with torch.no_grad():
            logits: torch.Tensor = model(ids).logits
            return logits.double().log_softmax(-1)

    dense, pruned = log_probs(json.loads(path.read_text())["model"]["source"]), output / "hf"
    return float((dense.exp() * (dense - log_probs(pruned))).sum(-1).mean())


def test_the_best_trials_value_is_that_of_the_model_that_is_written(
    asked: Callable[..., Path], prunec: Run, tmp_path: Path
) -> None:
    path = asked({"refit": False, "calibration": {}}, model={"dtype": "float32"})
    done = prunec("build", path, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    output, tuned = tmp_path / "out", made(tmp_path / "out", "tune")
    trials = {trial["number"]: trial for trial in tuned["tuning"]["trials"]}
    best = tuned["tuning"]["ranked"][0]
    assert trials[best]["value"] == pytest.approx(divergence_of(path, output), rel=1e-4)
    assert {"slope", "bend", "attention"} <= trials[best]["settings"].keys()
    assert made(output, "resolve")["layout"] == tuned["layout"]
    report = json.loads((output / "report" / "report.json").read_text(encoding="utf-8"))
    assert report["tuning"]["best"] == best and report["tuning"]["finalists"] == []
    assert len(report["tuning"]["trials"]) == 4
    assert report["tuning"]["collected"] == made(output, "statistics")["token_forwards"]


def test_of_the_best_trials_the_one_is_written_that_is_best_when_pruned_in_full(
    asked: Callable[..., Path], prunec: Run, tmp_path: Path
) -> None:
    path = asked({"finalists": 2}, model={"dtype": "float32"})
    done = prunec("build", path, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    output = tmp_path / "out"
    judged, ranked = made(output, "resolve"), made(output, "tune")["tuning"]["ranked"]
    assert len(judged["values"]) == 2 and judged["values"][0] != judged["values"][1]
    assert min(judged["values"]) == pytest.approx(divergence_of(path, output), rel=1e-4)
    report = json.loads((output / "report" / "report.json").read_text(encoding="utf-8"))
    finalists = report["tuning"]["finalists"]
    assert [one["number"] for one in finalists] == ranked
    assert min(finalists, key=lambda one: one["value"])["number"] == report["tuning"]["best"]


def test_more_trials_and_other_finalists_go_on_with_the_trials_that_there_are(
    asked: Callable[..., Path], prunec: Run, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    for changed in ({}, {"finalists": 1}, {"trials": 6}):
        path = asked({"finalists": 2} | changed)
        assert prunec("build", path, "--output", output).returncode == 0
        trials = made(output, "tune")["tuning"]["trials"]
        if not changed:
            first = trials
        assert trials[: len(first)] == first  # the seconds that they took, too
    assert len(trials) == 6


def test_uniform_prunes_as_the_best_trial_posed_its_problems(
    asked: Callable[..., Path], prunec: Run, tmp_path: Path
) -> None:
    # Calibrated on the same documents with a search and without, which has a text of its own.
    searched = {"source": {"kind": "jsonl", "files": ["fit.jsonl"], "field": "body"}}
    sections = {"model": {"dtype": "float32"}, "search": searched}
    tuned = asked({"inner": "uniform", "finalists": 1}, **sections)
    assert prunec("build", tuned, "--output", tmp_path / "tuned").returncode == 0
    settings = made(tmp_path / "tuned", "tune")["settings"]
    assert settings["damping"] != 0.01 or settings["first_order"] > 0
    content = json.loads(tuned.read_text(encoding="utf-8"))
    posed = {name: settings[name] for name in ("damping", "first_order")}
    content["method"] = {"kind": "uniform"} | posed
    del content["search"]
    plain = tuned.with_name(f"{tuned.stem}-plain.yaml")
    plain.write_text(json.dumps(content), encoding="utf-8")
    assert prunec("build", plain, "--output", tmp_path / "plain").returncode == 0
    ours, theirs = (
        load_file(tmp_path / name / "hf" / "model.safetensors") for name in ("tuned", "plain")
    )
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-3, atol=1e-4)


def test_a_build_that_dies_in_a_trial_ends_as_if_it_had_not(
    asked: Callable[..., Path], prunec: Run, prunec_process: Run, hashes: Hashes, tmp_path: Path
) -> None:
    path = asked({})
    assert (
        prunec_process(
            "build", path, "--output", tmp_path / "killed", prelude=DIE_IN_THIRD_TRIAL
        ).returncode
        == -9
    )
    for name in ("killed", "whole"):
        assert prunec("build", path, "--output", tmp_path / name).returncode == 0
    killed, whole = (made(tmp_path / name, "tune") for name in ("killed", "whole"))
    for trial in killed["tuning"]["trials"] + whole["tuning"]["trials"]:
        trial["seconds"] = 0.0
    assert killed == whole
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")
    manifest = json.loads((tmp_path / "killed" / "manifest.json").read_text(encoding="utf-8"))
    left = (tmp_path / "killed" / ".store" / manifest["steps"]["tune"]).iterdir()
    assert [path.name for path in left] == ["finished.json"]


def test_tyr_takes_the_settings_and_the_text_that_were_found_best(
    asked: Callable[..., Path], prunec: Run, tmp_path: Path
) -> None:
    parts = {
        "words": {"source": {"kind": "text", "files": ["fit-1.txt"]}},
        "lines": {"source": {"kind": "jsonl", "files": ["fit.jsonl"], "field": "body"}},
    }
    path = asked(
        {
            "inner": "tyr",
            "calibration": {"loss_quantiles": 2, "groups": 2, "lengths": [16, 32]},
            "objective": "perplexity",
            "sampler": "random",
        },
        calibration={"source": {"kind": "mix", "parts": parts}, "tokens": 512},
        search={
            "source": {"kind": "text", "files": ["fit-2.txt"]},
            "budget": {"token_forwards": 1600},
        },
    )
    done = prunec("build", path, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    found = made(tmp_path / "out", "tune")
    choice = found["settings"]["calibration"]
    assert tensor(tmp_path / "out", "calibration-tokens", "ids").shape[1] == choice["length"]
    assert made(tmp_path / "out", "calibration-tokens")["parts"].keys() <= choice["weights"].keys()
    assert "perplexity" in done.stderr
    steps = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))["steps"]
    assert {"supernet-1", "search-1", "resolve", "pool-16-words", "statistics-32-lines"} <= {*steps}


def test_weights_are_fitted_to_the_windows_that_the_best_trial_chose(
    asked: Callable[..., Path], prunec: Run, tmp_path: Path
) -> None:
    space = {"loss_quantiles": 2, "groups": 3}
    path = asked({"calibration": space, "finalists": 3, "trials": 12, "sampler": "random"})
    output = tmp_path / "out"
    assert prunec("build", path, "--output", output).returncode == 0
    pool, tuned = tensor(output, "pool", "ids"), made(output, "tune")
    some_left_out = False
    for place, finalist in enumerate(tuned["finalists"], start=1):
        choice = finalist["settings"]["calibration"]
        chosen = {
            tuple(pool[window].tolist())
            for group in made(output, "statistics")["groups"]
            if choice["quantile"] in (None, group["quantile"])
            and group["number"] in choice["groups"]
            for window in group["windows"]
        }
        drawn = tensor(output, f"calibration-tokens-{place}", "ids").tolist()
        assert len(drawn) == len(chosen) and {tuple(window) for window in drawn} == chosen
        some_left_out |= len(choice["groups"]) < 3
    assert some_left_out


def test_as_published_the_outermost_layers_stay_whole(
    asked: Callable[..., Path], prunec: Run, tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    path = asked({"faithful": True}, model={"source": str(tiny_llama(layers=8))})
    done = prunec("build", path, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    found = made(tmp_path / "out", "tune")
    assert {*found["settings"]["metrics"]} <= {
        "taylor_vector",
        "taylor_first",
        "taylor_second",
        "taylor_mixed",
    }
    layout = made(tmp_path / "out", "resolve")["layout"]
    assert layout[0] == layout[-1] == [4, 2, 96]
    assert all(layer[2] < 96 for layer in layout[1:-1])


@pytest.mark.parametrize(
    ("method", "target", "said"),
    [
        ({"calibration": {"groups": 40}}, {}, "classes of 40 groups, and pool has 32 windows"),
        ({"faithful": True}, {"layout": "uniform"}, "target.layout is uniform; with"),
        (
            {"allocation": {"kinds": ["angular"]}},
            {"layout": "uniform"},
            "method.allocation is given, and with target.layout: uniform all layers are alike",
        ),
    ],
)
def test_what_cannot_be_tuned_is_refused(
    asked: Callable[..., Path],
    prunec: Run,
    method: dict[str, Any],
    target: dict[str, Any],
    said: str,
) -> None:
    path = asked(method, target=target)
    done = prunec("plan", path)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
