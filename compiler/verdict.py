# SPDX-License-Identifier: Apache-2.0
"""The gates of a recipe held against what was measured.

Gates are made from what the recipe asks for, not from what there is: what is missing fails.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from prunec.compiler.plan import Plan, Step
from prunec.compiler.recipe import SizeCheck, SpeedCheck, TasksCheck, TextCheck, Validation
from prunec.compiler.steps.context import SEARCHES, Summary
from prunec.validators.gates import Comparison, Gate, judge, judge_exact, judge_parity
from prunec.validators.measurements import (
    Estimate,
    FootprintResult,
    PerplexityResult,
    SpeedResult,
    TaskResult,
)
from prunec.validators.results import Report


def is_lost(validation: Validation | None, plan: Plan, step: Step, found: Summary) -> bool:
    """Whether the recipe gives up after this step: the last search has ended too far away."""
    searches = [each.name for each in plan.steps if each.kind in SEARCHES]
    if validation is None or validation.abort_if is None or step.name not in searches[-1:]:
        return False
    return not found["history"][-1]["divergence"] <= validation.abort_if.divergence_above


def gates_of(validation: Validation | None, report: Report) -> tuple[Gate, ...]:
    """Every gate of the recipe, judged, and what no model may be, asked for or not.

    Parity is a gate for every artefact.
    """
    gates = [_damaged(problem) for problem in report.problems]
    if validation is None:
        return tuple(gates)
    if validation.abort_if and report.search:
        gates.append(
            judge_exact(
                "abort_if.divergence_above",
                "divergence on the search text",
                report.search.divergence.winner,
                validation.abort_if.divergence_above,
                "<=",
            )
        )
    if not report.artefacts:
        return tuple(gates)  # given up: nothing else was measured
    judged = _Judge(validation.on_inconclusive == "pass")
    if validation.perplexity:
        gates += judged.text("perplexity", "", validation.perplexity, report.perplexity)
    for name, check in validation.elsewhere.items():
        found = report.elsewhere.get(name)
        gates += judged.text(f"elsewhere.{name}", f" on {name}", check, found)
    if validation.tasks:
        gates += judged.tasks(validation.tasks, report.tasks)
    if validation.speed:
        gates += judged.speeds(validation.speed, report.speeds)
    if validation.size:
        gates += _sizes(validation.size, report.footprints)
    if validation.parity:
        gates += map(judge_parity, report.parities)
    return tuple(gates)


def _damaged(problem: str) -> Gate:
    """Files that disagree with each other are not judged by numbers."""
    return Gate("artefact.intact", None, None, None, 0, "<=", "failed", False, problem)


class _Judge:
    """Judges estimates; `lenient`: what is inconclusive passes."""

    def __init__(self, lenient: bool) -> None:
        self.lenient = lenient

    def text(
        self, key: str, where: str, check: TextCheck, found: PerplexityResult | None
    ) -> Iterator[Gate]:
        if found and not math.isfinite(found.pruned):
            message = f"the pruned model's perplexity{where} is not a finite number"
            yield Gate(f"{key}.finite", None, None, None, 0, "<=", "failed", False, message)
        for name, what, threshold, measured in (
            ("max_ratio", "perplexity ratio", check.max_ratio, "ratio"),
            ("max_perplexity", "perplexity", check.max_perplexity, "pruned_estimate"),
            ("max_divergence", "divergence", check.max_divergence, "divergence"),
        ):
            if threshold is not None:
                estimate = getattr(found, measured) if found else None
                error = found.undiverged if found and measured == "divergence" else None
                yield self._gate(f"{key}.{name}", what + where, estimate, threshold, "<=", error)

    def tasks(self, check: TasksCheck, found: Sequence[TaskResult]) -> Iterator[Gate]:
        several = len(check.backends) > 1
        if check.min_recovery is not None:
            for result in found:
                yield self._task("min_recovery", result, check.min_recovery, several)
            for name in check.names:
                if not any(result.task == name or name in result.groups for result in found):
                    yield self._absent(f"tasks.{name}.min_recovery", f"recovery on {name}")
        for kind, gates in (("max_drop", check.max_drop), ("min_score", check.min_score)):
            for name, threshold in gates.items():
                of_it = [r for r in found if r.task == name or name in r.groups]
                for result in of_it:
                    yield self._task(kind, result, threshold, several)
                if not of_it:
                    yield self._absent(f"tasks.{name}.{kind}", f"{name}")

    def _task(self, kind: str, result: TaskResult, threshold: float, several: bool) -> Gate:
        what, estimate = {
            "min_recovery": ("recovery", result.recovery),
            "max_drop": ("drop", _negated(result.difference)),
            "min_score": ("score", result.pruned_estimate),
        }[kind]
        comparison: Comparison = "<=" if kind == "max_drop" else ">="
        key, where = f"tasks.{result.task}.{kind}", f"{what} on {result.task}"
        if several:
            key, where = f"{key}.{result.backend}", f"{where} by {result.backend}"
        return self._gate(key, where, estimate, threshold, comparison, result.error)

    def speeds(self, check: SpeedCheck, found: Sequence[SpeedResult]) -> Iterator[Gate]:
        for kind, asked in (
            ("min_speedup", check.min_speedup),
            ("min_tokens_per_second", check.min_tokens_per_second),
        ):
            for runtime, phases in asked.items():
                for phase, threshold in phases.model_dump(exclude_none=True).items():
                    for batch in dict.fromkeys(check.batch_sizes):
                        yield self._speed(kind, (runtime, phase, batch), threshold, found)

    def _speed(
        self,
        kind: str,
        place: tuple[str, str, int],
        threshold: float,
        found: Sequence[SpeedResult],
    ) -> Gate:
        runtime, phase, batch = place
        what = "speedup" if kind == "min_speedup" else "tokens per second"
        result = next((r for r in found if (r.runtime, r.phase, r.batch) == place), None)
        estimate = None
        if result:
            estimate = result.speedup if kind == "min_speedup" else result.pruned_estimate
        return self._gate(
            f"speed.{runtime}.{phase}.batch_{batch}.{kind}",
            f"{what} of {phase} in {runtime} at batch {batch}",
            estimate,
            threshold,
            ">=",
            result.error if result else None,
        )

    def _absent(self, key: str, what: str) -> Gate:
        return self._gate(key, what, None, 0.0, ">=", "it is not among the results")

    def _gate(
        self,
        key: str,
        what: str,
        estimate: Estimate | None,
        threshold: float,
        comparison: Comparison,
        error: str | None = None,
    ) -> Gate:
        return judge(
            key,
            what,
            estimate,
            threshold,
            comparison,
            inconclusive_passes=self.lenient,
            error=error,
        )


def _sizes(check: SizeCheck, found: Sequence[FootprintResult]) -> Iterator[Gate]:
    for result in found:
        files = _over(result.file_bytes, result.dense_file_bytes)
        resident = _over(result.resident_bytes, result.dense_resident_bytes)
        for name, what, threshold, measured in (
            ("max_bytes", "bytes of files", check.max_bytes, result.file_bytes),
            ("max_bytes_ratio", "share of the dense bytes", check.max_bytes_ratio, files),
            ("max_resident_ratio", "share of the dense memory", check.max_resident_ratio, resident),
        ):
            if threshold is not None:
                key = f"size.{result.artefact}.{name}"
                yield judge_exact(key, f"{what} of {result.artefact}", measured, threshold, "<=")


def _over(pruned: int | None, dense: int | None) -> float | None:
    return pruned / dense if pruned is not None and dense else None


def _negated(estimate: Estimate) -> Estimate:
    value, low, high = -estimate.value, -estimate.high, -estimate.low
    return Estimate(value, low, high, estimate.count, estimate.unit, estimate.level)
