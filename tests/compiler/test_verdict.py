# SPDX-License-Identifier: Apache-2.0
"""Gates are made of what a recipe asks for: what is missing fails, with its reason."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from pydantic import BaseModel

from prunec.compiler.recipe import PerplexityCheck, SizeCheck, SpeedCheck, TasksCheck, Validation
from prunec.compiler.verdict import gates_of
from prunec.validators.gates import Gate
from prunec.validators.measurements import (
    Estimate,
    FootprintResult,
    ParityResult,
    PerplexityResult,
    SpeedResult,
    TaskResult,
)
from prunec.validators.results import Cost, ModelSize, Report

SIZE = ModelSize(parameters=100, prunable_parameters=80, bytes=400, kv_bytes_per_token=8)
BARE = Report(
    prunec_version="0",
    recipe="tiny",
    method="uniform",
    seed=0,
    dense=SIZE,
    pruned=SIZE,
    dense_layers=(),
    layers=(),
    cost=Cost(0, 0.0, 0),
    artefacts={"hf": "hf", "vllm": "vllm"},
)
UNKNOWN = Estimate.unknown("items")


def validation(**sections: Any) -> Validation:
    return Validation.model_validate(sections)


def judged(report: Report, **sections: Any) -> dict[str, Gate]:
    return {gate.name: gate for gate in gates_of(validation(**sections), report)}


def items(value: float, low: float, high: float, count: int = 400) -> Estimate:
    return Estimate(value, low, high, count, "items")


def scored(task: str, backend: str = "hf", **other: Any) -> TaskResult:
    usual: dict[str, Any] = {
        "metric": "acc",
        "items": 400,
        "dense": 0.6,
        "pruned": 0.57,
        "difference": items(-0.03, -0.05, -0.01),
        "recovery": items(0.95, 0.91, 0.99),
        "pruned_estimate": items(0.57, 0.52, 0.62),
        "chance": 0.25,
        "recovery_above_chance": items(0.91, 0.86, 0.97),
    }
    return TaskResult(task=task, backend=backend, **usual | other)


def lost(
    task: str, backend: str = "hf", error: str = "lm-eval was killed by SIGKILL"
) -> TaskResult:
    return TaskResult(
        task, backend, "", 0, math.nan, math.nan, UNKNOWN, UNKNOWN, UNKNOWN, error=error
    )


def test_a_group_is_judged_by_its_own_figures_and_its_tasks_only_if_they_are_named() -> None:
    doubtful = scored("leaf_1", recovery=items(0.8, 0.5, 1.2, 20), groups=("many",))
    group = scored("many", tasks=("leaf_1", "leaf_2"))
    report = replace(BARE, tasks=(group, doubtful, scored("leaf_2", groups=("many",))))
    assert list(judged(report, tasks={"names": ["many"], "min_recovery": 0.9})) == [
        "tasks.many.min_recovery"
    ]
    assert gates_of(validation(tasks={"names": ["many"], "min_recovery": 0.9}), report)[0].passed
    both = judged(report, tasks={"names": ["many", "leaf_1"], "min_recovery": 0.9})
    assert both["tasks.leaf_1.min_recovery"].verdict == "inconclusive"


def test_every_kind_of_gate_on_a_task_is_held_against_its_own_number() -> None:
    asked = {
        "names": ["t"],
        "min_recovery": 0.9,
        "min_recovery_above_chance": 0.9,
        "max_drop": {"t": 0.04},
        "min_score": {"t": 0.65},
    }
    found = judged(replace(BARE, tasks=(scored("t"),)), tasks=asked)
    assert {name.removeprefix("tasks.t."): gate.verdict for name, gate in found.items()} == {
        "min_recovery": "passed",
        "min_recovery_above_chance": "inconclusive",
        "max_drop": "inconclusive",
        "min_score": "failed",
    }


@pytest.mark.parametrize("results", [(), (lost("t", "vllm"),)], ids=["missing", "died"])
def test_a_backend_without_results_fails_beside_one_that_passes(
    results: tuple[TaskResult, ...],
) -> None:
    report = replace(BARE, tasks=(scored("t"), *results))
    asked = {"names": ["t"], "backends": ["hf", "vllm"], "min_recovery": 0.9}
    found = judged(report, tasks=asked)
    assert found["tasks.t.min_recovery.hf"].passed
    gone = found["tasks.t.min_recovery.vllm"]
    assert gone.verdict == "failed" and not gone.passed
    reason = "killed by SIGKILL" if results else "it is not among the results"
    assert f"recovery on t by vllm was not measured: {reason}" in gone.message.replace(
        "lm-eval was ", ""
    )


def test_a_measurement_that_errs_fails_though_no_gate_asks() -> None:
    report = replace(BARE, tasks=(lost("t"),))
    [gate] = gates_of(validation(tasks={"names": ["t"]}), report)
    assert (gate.name, gate.passed) == ("tasks.t.measured", False)
    assert gate.message == "t was not measured: lm-eval was killed by SIGKILL"
    assert not gates_of(validation(tasks={"names": ["t"]}), replace(BARE, tasks=(scored("t"),)))


def test_recovery_says_why_there_is_none() -> None:
    asked = {"names": ["t"], "min_recovery": 0.9, "min_recovery_above_chance": 0.5}
    nothing = replace(UNKNOWN, count=400)
    useless = scored("t", dense=0.0, recovery=nothing, recovery_above_chance=nothing)
    found = judged(replace(BARE, tasks=(useless,)), tasks=asked)
    said = found["tasks.t.min_recovery"].message
    assert "not measured: the dense model scores 0, of which there is no share" in said
    assert "no better than guessing" in found["tasks.t.min_recovery_above_chance"].message
    free = scored("t", chance=None, recovery_above_chance=None)
    found = judged(replace(BARE, tasks=(free,)), tasks=asked)
    assert found["tasks.t.min_recovery"].passed
    said = found["tasks.t.min_recovery_above_chance"].message
    assert "was not measured: what guessing scores is not known" in said


def timed(runtime: str, error: str | None = None) -> SpeedResult:
    speedup = Estimate(1.5, 1.4, 1.6, 9, "pairs", 0.99)
    rate = Estimate(100.0, 90.0, 110.0, 9, "turns", 0.99)
    return SpeedResult(runtime, "decode", 1, 128, 32, 70, 100, 0.01, 0.01, rate, speedup, error)


def test_speed_that_errs_or_is_missing_fails_with_a_gate_and_without() -> None:
    report = replace(
        BARE, speeds=(timed("hf"), replace(timed("hf"), phase="prefill"), timed("vllm", "it died"))
    )
    asked = {"runtimes": ["hf", "vllm"], "min_speedup": {"vllm": {"decode": 1.2}}}
    found = judged(report, speed=asked)
    assert {name: gate.passed for name, gate in found.items()} == {
        "speed.vllm.prefill.batch_1.measured": False,
        "speed.vllm.decode.batch_1.min_speedup": False,
    }
    assert "it is not among the results" in found["speed.vllm.prefill.batch_1.measured"].message
    assert "was not measured: it died" in found["speed.vllm.decode.batch_1.min_speedup"].message


TEXT = {"source": {"kind": "python_stdlib"}, "sequence_length": 128, "tokens": 10_000}


def test_parity_and_size_are_asked_of_every_artefact() -> None:
    report = replace(
        BARE,
        parities=(ParityResult("hf", 0.0, 1e-3, 32, 32),),
        footprints=(FootprintResult("hf", 50, 100, None, None),),
    )
    found = judged(report, perplexity=TEXT, parity={}, size={"max_bytes_ratio": 0.9})
    assert {name: gate.passed for name, gate in found.items()} == {
        "size.hf.max_bytes_ratio": True,
        "size.vllm.max_bytes_ratio": False,
        "parity.hf": True,
        "parity.vllm": False,
    }
    assert found["parity.vllm"].message == (
        "parity of the vllm artefact with the model in memory was not measured: it is not among "
        "the results"
    )


def test_what_would_settle_a_gate_is_said_as_the_recipe_has_it() -> None:
    ratio = Estimate(1.3, 1.2, 1.4, 78, "windows")
    text = PerplexityResult(10, 13, ratio, ratio, ratio, 78 * 127, "stdlib")
    found = judged(replace(BARE, perplexity=text), perplexity=TEXT | {"max_ratio": 1.35})
    # 4 · 78 = 312 windows of 128 tokens, in two digits.
    said = found["perplexity.max_ratio"].message
    assert said.endswith(": about `tokens: 40960` instead of 9984 would settle it")

    found = judged(
        replace(BARE, perplexity=text), perplexity=TEXT | {"max_ratio": 1.35, "tokens": "all"}
    )
    said = found["perplexity.max_ratio"].message
    assert said.endswith(": about 320 windows would settle it, and all 78 were measured")

    doubtful = scored("t", items=100, recovery=items(0.85, 0.75, 0.95, 100))
    asked: dict[str, Any] = {"names": ["t"], "min_recovery": 0.9, "limit": 100}
    report = replace(BARE, tasks=(doubtful,))
    said = judged(report, tasks=asked)["tasks.t.min_recovery"].message
    assert said.endswith(": about `limit: 400` instead of 100 would settle it")
    for limit in (None, 500):  # the task has no more
        said = judged(report, tasks=asked | {"limit": limit})["tasks.t.min_recovery"].message
        assert said.endswith(": about 400 items would settle it, and all 100 were measured")
    group = replace(doubtful, tasks=("a", "b"))
    halved = judged(replace(BARE, tasks=(group,)), tasks=asked | {"limit": 50})
    assert "about `limit: 200` instead of 50" in halved["tasks.t.min_recovery"].message

    wide = replace(timed("hf"), speedup=Estimate(1.5, 1.3, 1.7, 9, "pairs", 0.99))
    report = replace(BARE, speeds=(wide, replace(wide, phase="prefill")))
    asked = {"runtimes": ["hf"], "min_speedup": {"hf": {"decode": 1.4}}}
    said = judged(report, speed=asked)["speed.hf.decode.batch_1.min_speedup"].message
    assert said.endswith(": about `pairs: 36` instead of 9 would settle it")


#: Sections of `validate` with thresholds, and what they need beside them.
THRESHOLDS: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "perplexity": (PerplexityCheck, {"source": {"kind": "python_stdlib"}}),
    "tasks": (TasksCheck, {"names": ["easy"]}),
    "speed": (SpeedCheck, {"runtimes": ["hf"]}),
    "size": (SizeCheck, {}),
}
VALUES: dict[str, Any] = {
    "max_bytes": 1,
    "max_drop": {"easy": 0.1},
    "min_score": {"easy": 0.5},
    "min_speedup": {"hf": {"prefill": 1.1, "decode": 1.1}},
    "min_tokens_per_second": {"hf": {"prefill": 9.0, "decode": 9.0}},
}


@pytest.mark.parametrize("section", THRESHOLDS)
def test_every_threshold_that_a_recipe_may_set_is_a_gate(section: str) -> None:
    kind, asked = THRESHOLDS[section]
    names = {name for name in kind.model_fields if name.startswith(("min_", "max_"))}
    for name in sorted(names - {"max_length"}):  # of a context
        gates = judged(BARE, **{section: asked | {name: VALUES.get(name, 1.5)}})
        found = [gate for label, gate in gates.items() if name in label]
        assert found and not any(gate.passed for gate in found), f"{section}.{name}"
