# SPDX-License-Identifier: Apache-2.0
"""Every family from recipe to artefact: searched, solved, written and judged."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from prunec.compiler.model.families import FAMILIES

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def options(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_family_is_pruned_written_and_judged(
    model_type: str,
    recipe: Path,
    prunec: Run,
    tiny_family: Callable[..., Path],
    tmp_path: Path,
) -> None:
    settings = options(
        f"model.source={tiny_family(model_type)}",
        "method={kind: tyr, offspring: 4}",
        "search.budget.token_forwards=1600",
        "search.tokens=128",
    )
    done = prunec("build", recipe, "--output", tmp_path / "out", "--json", *settings)
    report = json.loads(done.stdout)
    assert done.returncode == 0, [gate["message"] for gate in report["gates"]]
    assert report["pruned"]["sparsity"] == pytest.approx(0.5, abs=0.02)
    assert report["perplexity"]["pruned"] > 0
    done = prunec("inspect", tmp_path / "out", "--json")
    assert (done.returncode, json.loads(done.stdout)["problems"]) == (0, [])


@pytest.mark.parametrize(
    "model_type", [name for name, family in FAMILIES.items() if family.ends_in_norm]
)
def test_a_dense_target_is_refused_where_sublayers_end_in_a_norm(
    model_type: str, recipe: Path, prunec: Run, tiny_family: Callable[..., Path]
) -> None:
    settings = options(
        f"model.source={tiny_family(model_type)}", "method={kind: tyr, dense_target: 0.25}"
    )
    done = prunec("plan", recipe, *settings)
    assert done.returncode == 2
    assert "method.dense_target is 0.25; with" in done.stderr
    assert "end in a norm" in done.stderr


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_final_weights_are_led_to_the_dense_model_where_that_is_linear(
    model_type: str, recipe: Path, prunec: Run, tiny_family: Callable[..., Path]
) -> None:
    done = prunec("plan", recipe, "--json", *options(f"model.source={tiny_family(model_type)}"))
    assert done.returncode == 0, done.stderr
    steps = {step["kind"]: step for step in json.loads(done.stdout)["steps"]}
    led = steps["resolve"]["params"]["dense_target"]
    assert led == (0.0 if FAMILIES[model_type].ends_in_norm else 0.5)
