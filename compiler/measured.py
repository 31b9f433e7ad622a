# SPDX-License-Identifier: Apache-2.0
"""What measuring steps have found, put together: dense beside pruned, item by item."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prunec.compiler.plan import Plan
from prunec.compiler.steps.context import Summary
from prunec.compiler.steps.export import describe_source
from prunec.validators import tasks
from prunec.validators.measurements import (
    Estimate,
    FootprintResult,
    ParityResult,
    PerplexityResult,
    SpeedResult,
    TaskResult,
)
from prunec.validators.perplexity import Perplexity, compare_texts
from prunec.validators.statistics import exp_mean_interval


@dataclass(frozen=True)
class FinishedStep:
    """A finished step: what it found, what it took, whether that was in this run."""

    summary: Summary
    seconds: float
    peak_rss_bytes: int
    reused: bool


def texts_of(plan: Plan, done: Mapping[str, FinishedStep]) -> dict[str, PerplexityResult]:
    """Both models on every judging text, by the step that drew it."""
    if "measure-dense" not in done:
        return {}
    dense, pruned = (done[f"measure-{model}"].summary["texts"] for model in ("dense", "pruned"))
    found = {}
    for name in dense:
        before, after = _perplexity(dense[name]), _perplexity(pruned[name])
        params = plan.step(name).params
        serial = params["order"] is None  # the whole text, window after window
        divergences = pruned[name]["window_divergences"]
        ratio, divergence = compare_texts(before, after, divergences, serial=serial)
        found[name] = PerplexityResult(
            dense=before.value,
            pruned=after.value,
            pruned_estimate=exp_mean_interval(after.window_losses, "windows", serial=serial),
            ratio=ratio,
            divergence=divergence,
            tokens=before.tokens,
            source=describe_source(params["source"]),
            reading=_reading(params, done[name].summary, len(before.window_losses)),
            undiverged=pruned[name].get("undiverged"),
        )
    return found


def _reading(params: Mapping[str, Any], summary: Summary, windows: int) -> str:
    """How a text became windows, which its perplexity depends on."""
    length = params["length"]
    order = "from its beginning on" if params["order"] is None else "drawn at random"
    begun = f"each after {summary['begin']}" if summary["begin"] else "without BOS"
    return f"{windows:,} windows of {length:,} tokens {order}, {begun}"


def _perplexity(saved: Mapping[str, Any]) -> Perplexity:
    return Perplexity(saved["value"], saved["loss"], saved["tokens"], tuple(saved["window_losses"]))


def tasks_of(plan: Plan, done: Mapping[str, FinishedStep]) -> tuple[TaskResult, ...]:
    found: list[TaskResult] = []
    for step in plan.steps:
        if step.kind == "tasks" and "artefact" in step.inputs:
            backend = step.params["backend"]
            dense, pruned = (
                tasks.TaskScores.from_dict(done[f"tasks-{model}-{backend}"].summary["scores"])
                for model in ("dense", "pruned")
            )
            found += tasks.compare(dense, pruned, backend)
    return tuple(found)


def speeds_of(done: Mapping[str, FinishedStep]) -> tuple[SpeedResult, ...]:
    return tuple(
        SpeedResult(
            **saved | {name: Estimate(**saved[name]) for name in ("pruned_estimate", "speedup")}
        )
        for saved in _lines(done, "speeds")
    )


def footprints_of(done: Mapping[str, FinishedStep]) -> tuple[FootprintResult, ...]:
    return tuple(FootprintResult(**saved) for saved in _lines(done, "footprints"))


def parities_of(done: Mapping[str, FinishedStep]) -> tuple[ParityResult, ...]:
    return tuple(ParityResult(**saved) for saved in _lines(done, "parities"))


def _lines(done: Mapping[str, FinishedStep], key: str) -> Iterator[dict[str, Any]]:
    for step in done.values():
        yield from step.summary.get(key, ())
