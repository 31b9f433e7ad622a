# SPDX-License-Identifier: Apache-2.0
"""Text of several sources, and of the model's own hand, from the recipe to the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from prunec.compiler.calibration.self_written import write_windows
from prunec.compiler.store import Entry

Run = Callable[..., Any]

UNIFORM = ("--set", "method={kind: uniform}", "--set", "search=null", "--set", "validate=null")
MIX = (
    "--set",
    "calibration.source={kind: mix, parts: {"
    "words: {source: {kind: text, files: ['fit-*.txt']}, weight: 3}, "
    "again: {source: {kind: text, files: ['fit-*.txt']}}, "
    "lines: {source: {kind: jsonl, files: [fit.jsonl], field: body}, weight: 2}, "
    "own: {source: {kind: self, temperature: 0.9}, weight: 2}, "
    "never: {source: {kind: python_stdlib}, weight: 0}}}",
)
SELF = ("--set", "calibration.source={kind: self}")


def _plan(prunec: Run, recipe: Path, *more: str) -> dict[str, Any]:
    done = prunec("plan", recipe, "--json", *more)
    assert done.returncode == 0, done.stderr
    return {step["name"]: step for step in json.loads(done.stdout)["steps"]}


def _ids(output: Path, step: str) -> Tensor:
    manifest = json.loads((output / "manifest.json").read_text())
    ids: Tensor = Entry(output / ".store" / manifest["steps"][step]).require_tensors("ids")[0][
        "ids"
    ]
    return ids


def _windows(ids: Tensor) -> set[tuple[int, ...]]:
    return {tuple(window) for window in ids.tolist()}


def test_a_mixture_holds_the_share_of_every_part_and_no_window_twice(
    prunec: Run, recipe: Path, tmp_path: Path
) -> None:
    quick = ["search.budget={token_forwards: 1000}", "method.rounds=1", "validate=null"]
    options = [part for setting in quick for part in ("--set", setting)]
    done = prunec("build", recipe, "--output", tmp_path, *MIX, *options)
    assert done.returncode == 0, done.stderr
    shares = {"words": 12, "again": 4, "lines": 8, "own": 8}
    searched = {"words": 3, "again": 1, "lines": 2, "own": 2}
    seen: list[tuple[int, ...]] = []
    for step, counts in (("calibration-tokens", shares), ("search-tokens", searched)):
        parts = {name: _ids(tmp_path, f"{step}-{name}") for name in counts}
        assert {name: len(ids) for name, ids in parts.items()} == counts
        mixed = _ids(tmp_path, step)
        assert mixed.shape == (sum(counts.values()), 32)
        assert _windows(mixed) == set.union(*map(_windows, parts.values()))
        assert mixed[:12].tolist() != parts["again"].tolist() + mixed[4:12].tolist()  # shuffled
        for name in ("words", "again", "own"):  # the lines repeat themselves
            seen += map(tuple, parts[name].tolist())
    assert len(set(seen)) == len(seen) == 30
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "mix of 37.5% text (fit-1.txt, fit-2.txt), 12.5% text" in card
    assert "25.0% the dense model's own (temperature 0.9)" in card


def test_a_build_without_text_is_calibrated_on_what_the_model_writes(
    prunec: Run,
    recipe: Path,
    tmp_path: Path,
    interrupt_at_write: Callable[[int], Any],
    monkeypatch: pytest.MonkeyPatch,
    hashes: Callable[[Path], dict[str, str]],
) -> None:
    monkeypatch.setattr("prunec.compiler.plan_texts._WINDOWS", 12)  # three batches
    wrote: list[int] = []

    def counted(*given: Any) -> Tensor:
        ids = write_windows(*given)
        wrote.append(len(ids))
        return ids

    monkeypatch.setattr("prunec.compiler.steps.generate.write_windows", counted)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    with interrupt_at_write(3):  # the model that is meant, two batches
        assert prunec("build", recipe, "--output", killed, *SELF, *UNIFORM).returncode == 130
    assert wrote == [12, 12]
    assert prunec("build", recipe, "--output", killed, *SELF, *UNIFORM).returncode == 0
    assert wrote == [12, 12, 12, 8]
    assert prunec("build", recipe, "--output", whole, *SELF, *UNIFORM).returncode == 0
    assert hashes(killed) == hashes(whole)
    ids = _ids(whole, "calibration-tokens")
    assert ids.shape == (32, 32) and len(_windows(ids)) == 32


def test_self_written_text_to_search_on_is_not_what_was_calibrated_on(
    prunec: Run, recipe: Path
) -> None:
    steps = _plan(prunec, recipe, *SELF)
    calibration, search = (steps[f"{name}-tokens"]["params"] for name in ("calibration", "search"))
    assert (calibration["skip"], calibration["windows"]) == (0, 32)
    assert (search["skip"], search["windows"]) == (32, 8)
    assert calibration["seed"] == search["seed"]
    # How much is searched on does not change what is calibrated on.
    more = _plan(prunec, recipe, *SELF, "--set", "search.tokens=512")
    assert more["calibration-tokens"] == steps["calibration-tokens"]


def test_pools_of_several_lengths_hold_the_same_tokens_and_none_of_the_search(
    prunec: Run, recipe: Path
) -> None:
    tuned = "method={kind: adapruner, calibration: {lengths: [16, 24, 64]}, trials: 2}"
    mix = (
        "calibration.source={kind: mix, parts: {a: {source: {kind: text, files: [fit-1.txt]}}, "
        "b: {source: {kind: self}, weight: 0}}}"
    )
    steps = _plan(prunec, recipe, "--set", tuned, "--set", mix, "--set", "search={tokens: 256}")
    for part in ("a", "b"):
        pools = [steps[f"pool-{length}-{part}"]["params"] for length in (16, 24, 64)]
        assert [(p["windows"], p["length"]) for p in pools] == [(64, 16), (43, 24), (16, 64)]
        assert [p.get("cut_from") for p in pools] == [64, 64, None]
        # 43 windows of 24 tokens, two in each of 64, are the most: 22.
        assert all(p.get("skip", 0) == 0 and p.get("total", 22) == 22 for p in pools)
    # The search reads documents of its own.
    search, pool = (steps[name]["params"] for name in ("search-tokens-a", "pool-16-a"))
    assert "cut_from" not in search and search["order"] == pool["order"]
    assert pool["deal"] == {"shares": [22 * 64, 256], "own": 0}
    assert search["deal"] == {"shares": [22 * 64, 256], "own": 1}
    assert "search-tokens-b" not in steps and "calibration-tokens-a" not in steps


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            ["calibration.tokens=64", MIX[1]],
            "calibration.source mixes 4 texts, and calibration-tokens has 2 windows of 32 tokens",
        ),
        (
            ["calibration.sequence_length=1024", SELF[1], "search=null", UNIFORM[1]],
            "calibration.source is self, in windows of 1,024 tokens; the model writes at most 512",
        ),
    ],
)
def test_what_cannot_be_drawn_is_said_when_planning(
    settings: list[str], problem: str, prunec: Run, recipe: Path
) -> None:
    options = [part for setting in settings for part in ("--set", setting)]
    done = prunec("plan", recipe, "--set", "validate=null", *options)
    assert done.returncode == 2
    assert problem in " ".join(done.stderr.split())
