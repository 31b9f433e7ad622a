# SPDX-License-Identifier: Apache-2.0
"""The gates of a recipe held against what was measured.

Gates are made from what the recipe asks for, not from what there is: what is missing fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prunec.compiler.plan import Plan, Step
from prunec.compiler.recipe import SizeCheck, SpeedCheck, TasksCheck, TextCheck, Validation
from prunec.compiler.steps.context import SEARCHES, Summary
from prunec.validators.gates import Amount, Comparison, Gate, judge, judge_exact, judge_parity
from prunec.validators.measurements import (
    Estimate,
    PerplexityResult,
    SpeedResult,
    TaskResult,
)
from prunec.validators.results import Report
from prunec.validators.speed import PHASES, Phase, Runtime

_ABSENT = "it is not among the results"


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
        gates += _sizes(validation.size, report)
    if validation.parity:
        gates += _parities(report)
    return tuple(gates)


def _damaged(problem: str) -> Gate:
    """Files that disagree with each other are not judged by numbers."""
    return _failed("artefact.intact", problem)


def _missing(name: str, what: str, error: str) -> Gate:
    """What was to be measured, and was not, fails though no threshold is set for it."""
    return _failed(name, f"{what} was not measured: {error.rstrip('.')}")


def _failed(name: str, message: str) -> Gate:
    return Gate(name, None, None, None, 0, "<=", "failed", False, " ".join(message.split()))


@dataclass(frozen=True)
class _TaskGate:
    """A kind of gate on tasks: its threshold for a name in a recipe, if it has one, and what of a
    result it is held against."""

    name: str
    what: str
    comparison: Comparison
    threshold: Callable[[TasksCheck, str], float | None]
    estimate: Callable[[TaskResult], Estimate | None]

    def why_not(self, result: TaskResult) -> str | None:
        """Why a result has no such number, though both models were scored."""
        if self.name == "min_recovery" and result.dense <= 0:
            return f"the dense model scores {result.dense:g}, of which there is no share"
        if self.name != "min_recovery_above_chance":
            return None
        if result.chance is None:
            return "what guessing scores is not known"
        if result.dense <= result.chance:
            scores = f"{result.dense:.3f}, guessing {result.chance:.3f}"
            return f"the dense model is no better than guessing (it scores {scores})"
        return None


_TASK_GATES = (
    _TaskGate(
        "min_recovery", "recovery", ">=", lambda check, _: check.min_recovery, lambda r: r.recovery
    ),
    _TaskGate(
        "min_recovery_above_chance",
        "recovery above chance",
        ">=",
        lambda check, _: check.min_recovery_above_chance,
        lambda r: r.recovery_above_chance,
    ),
    _TaskGate(
        "max_drop",
        "drop",
        "<=",
        lambda check, name: check.max_drop.get(name),
        lambda r: _negated(r.difference),
    ),
    _TaskGate(
        "min_score",
        "score",
        ">=",
        lambda check, name: check.min_score.get(name),
        lambda r: r.pruned_estimate,
    ),
)


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
        length = check.sequence_length
        amount = (
            Amount("tokens", None, exhausted=True)
            if check.tokens == "all"
            else Amount("tokens", check.tokens // length * length, length)
        )
        for name, what, threshold, measured in (
            ("max_ratio", "perplexity ratio", check.max_ratio, "ratio"),
            ("max_perplexity", "perplexity", check.max_perplexity, "pruned_estimate"),
            ("max_divergence", "divergence", check.max_divergence, "divergence"),
        ):
            if threshold is not None:
                estimate = getattr(found, measured) if found else None
                error = found.undiverged if found and measured == "divergence" else None
                yield self._gate(
                    f"{key}.{name}", what + where, estimate, threshold, "<=", error, amount
                )

    def tasks(self, check: TasksCheck, found: Sequence[TaskResult]) -> Iterator[Gate]:
        """Gates on what the recipe names, a group as one; what has none must be measured."""
        several = len(set(check.backends)) > 1
        for backend in dict.fromkeys(check.backends):
            by = f" by {backend}" if several else ""
            suffix = f".{backend}" if several else ""
            for name in dict.fromkeys(check.names):
                result = next((r for r in found if (r.task, r.backend) == (name, backend)), None)
                error = result.error if result else _ABSENT
                asked = [
                    (kind, threshold)
                    for kind in _TASK_GATES
                    if (threshold := kind.threshold(check, name)) is not None
                ]
                for kind, threshold in asked:
                    yield self._gate(
                        f"tasks.{name}.{kind.name}{suffix}",
                        f"{kind.what} on {name}{by}",
                        kind.estimate(result) if result else None,
                        threshold,
                        kind.comparison,
                        error or (kind.why_not(result) if result else None),
                        _limit(check, result) if result else None,
                    )
                if error and not asked:
                    yield _missing(f"tasks.{name}.measured{suffix}", f"{name}{by}", error)

    def speeds(self, check: SpeedCheck, found: Sequence[SpeedResult]) -> Iterator[Gate]:
        """Gates at every batch size; what has none must be measured."""
        for runtime in dict.fromkeys(check.runtimes):
            for phase in PHASES:
                for batch in dict.fromkeys(check.batch_sizes):
                    place = (runtime, phase, batch)
                    result = next((r for r in found if _place(r) == place), None)
                    yield from self._speed(check, runtime, phase, batch, result)

    def _speed(
        self,
        check: SpeedCheck,
        runtime: Runtime,
        phase: Phase,
        batch: int,
        result: SpeedResult | None,
    ) -> Iterator[Gate]:
        key, where = (
            f"speed.{runtime}.{phase}.batch_{batch}",
            f"{phase} in {runtime} at batch {batch}",
        )
        error = result.error if result else _ABSENT
        amount = Amount("pairs", check.pairs)
        gated = False
        for name, what, by_runtime, measured in (
            ("min_speedup", "speedup", check.min_speedup, "speedup"),
            (
                "min_tokens_per_second",
                "tokens per second",
                check.min_tokens_per_second,
                "pruned_estimate",
            ),
        ):
            threshold = getattr(by_runtime.get(runtime), phase, None)
            if threshold is not None:
                gated = True
                estimate = getattr(result, measured, None)
                yield self._gate(
                    f"{key}.{name}", f"{what} of {where}", estimate, threshold, ">=", error, amount
                )
        if error and not gated:
            yield _missing(f"{key}.measured", f"speed of {where}", error)

    def _gate(
        self,
        key: str,
        what: str,
        estimate: Estimate | None,
        threshold: float,
        comparison: Comparison,
        error: str | None = None,
        amount: Amount | None = None,
    ) -> Gate:
        return judge(
            key,
            what,
            estimate,
            threshold,
            comparison,
            inconclusive_passes=self.lenient,
            error=error,
            amount=amount,
        )


def _place(result: SpeedResult) -> tuple[str, str, int]:
    return result.runtime, result.phase, result.batch


def _limit(check: TasksCheck, result: TaskResult) -> Amount:
    """What would give a task, or a group, more items."""
    if check.limit is None or not result.items:
        return Amount("limit", check.limit, exhausted=check.limit is None)
    exhausted = not result.tasks and result.items < check.limit
    return Amount("limit", check.limit, check.limit / result.items, exhausted)


def _parities(report: Report) -> Iterator[Gate]:
    """One for every artefact, compared or not."""
    found = {result.artefact: result for result in report.parities}
    for kind in dict.fromkeys([*report.artefacts, *found]):
        if kind in found:
            yield judge_parity(found[kind])
        else:
            what = f"parity of the {kind} artefact with the model in memory"
            yield _missing(f"parity.{kind}", what, _ABSENT)


def _sizes(check: SizeCheck, report: Report) -> Iterator[Gate]:
    found = {result.artefact: result for result in report.footprints}
    for artefact in dict.fromkeys([*report.artefacts, *found]):
        result = found.get(artefact)
        for name, what, threshold, measure in (
            ("max_bytes", "bytes of files", check.max_bytes, lambda r: r.file_bytes),
            (
                "max_bytes_ratio",
                "share of the dense bytes",
                check.max_bytes_ratio,
                lambda r: _over(r.file_bytes, r.dense_file_bytes),
            ),
            (
                "max_resident_ratio",
                "share of the dense memory",
                check.max_resident_ratio,
                lambda r: _over(r.resident_bytes, r.dense_resident_bytes),
            ),
        ):
            if threshold is not None:
                yield judge_exact(
                    f"size.{artefact}.{name}",
                    f"{what} of {artefact}",
                    measure(result) if result else None,
                    threshold,
                    "<=",
                    None if result else _ABSENT,
                )


def _over(pruned: int | None, dense: int | None) -> float | None:
    return pruned / dense if pruned is not None and dense else None


def _negated(estimate: Estimate) -> Estimate:
    value, low, high = -estimate.value, -estimate.high, -estimate.low
    return Estimate(value, low, high, estimate.count, estimate.unit, estimate.level)
