# SPDX-License-Identifier: Apache-2.0
"""What the points of a sweep are compared by: how good, how small, how fast."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from prunec.validators.measurements import Estimate, PerplexityResult
from prunec.validators.results import Report


@dataclass(frozen=True)
class Axis:
    """A number that every report has, or may have.

    key: its name in JSON; title: in words; better: which end of it is
    of: reads it from a report; its value is NaN where it was not measured
    dense: what the dense model has of it; gate: the name of the gate on it, if there is one
    brief: the title where it is said what all have in common
    """

    key: str
    title: str
    better: Literal["less", "more"]
    of: Callable[[Report], Estimate]
    dense: Callable[[Report], float]
    gate: str | None = None
    brief: str = ""

    def value(self, report: Report) -> float:
        return self.of(report).value

    def loss(self, report: Report) -> float:
        """The value, turned so that less is better."""
        return self.value(report) if self.better == "less" else -self.value(report)


def _parameters(report: Report) -> Estimate:
    return Estimate(report.pruned.parameters, math.nan, math.nan, 1, "models")


PARAMETERS = Axis(
    "parameters", "parameters", "less", _parameters, lambda report: report.dense.parameters
)


def quality_axis(reports: Sequence[Report]) -> Axis | None:
    """How good the models are, by the first of these that was measured of any of them.

    The perplexity ratio on the text of `validate.perplexity`, then on others; the
    divergence on these; the mean recovery of all tasks; the divergence that the search ended at.
    """
    for axis in (*_text_axes(reports), _RECOVERY, _SEARCHED):
        if any(math.isfinite(axis.value(report)) for report in reports):
            return axis
    return None


def speed_axes(reports: Sequence[Report]) -> list[Axis]:
    """The speedup in every runtime, phase and batch in which it was measured of any model."""
    places = dict.fromkeys(
        (found.runtime, found.phase, found.batch)
        for report in reports
        for found in report.speeds
        if math.isfinite(found.speedup.value)
    )
    return [_speed_axis(*place) for place in places]


def _speed_axis(runtime: str, phase: str, batch: int) -> Axis:
    def speedup(report: Report) -> Estimate:
        for found in report.speeds:
            if (found.runtime, found.phase, found.batch) == (runtime, phase, batch):
                return found.speedup
        return Estimate.unknown("pairs")

    return Axis(
        f"speed.{runtime}.{phase}.batch_{batch}",
        f"speedup of {phase} in {runtime}, batch {batch}",
        "more",
        speedup,
        lambda _: 1.0,
        brief=f"{runtime} {phase}, batch {batch}",
    )


def _text_axes(reports: Sequence[Report]) -> list[Axis]:
    elsewhere = dict.fromkeys(name for report in reports for name in report.elsewhere)
    return [
        *(_ratio_axis(name) for name in (None, *elsewhere)),
        *(_divergence_axis(name) for name in (None, *elsewhere)),
    ]


def _ratio_axis(name: str | None) -> Axis:
    def ratio(report: Report) -> Estimate:
        found = _text(report, name)
        return found.ratio if found else Estimate.unknown("windows")

    key, on = _named(name)
    title, gate = f"perplexity ratio{on}", f"{key}.max_ratio"
    return Axis(f"{key}.ratio", title, "less", ratio, lambda _: 1.0, gate)


def _divergence_axis(name: str | None) -> Axis:
    def divergence(report: Report) -> Estimate:
        found = _text(report, name)
        return found.divergence if found else Estimate.unknown("windows")

    key, on = _named(name)
    title, gate = f"divergence{on}, nats per token", f"{key}.max_divergence"
    return Axis(f"{key}.divergence", title, "less", divergence, lambda _: 0.0, gate)


def _named(name: str | None) -> tuple[str, str]:
    return ("perplexity", "") if name is None else (f"elsewhere.{name}", f" on {name}")


def _text(report: Report, name: str | None) -> PerplexityResult | None:
    return report.perplexity if name is None else report.elsewhere.get(name)


def _mean_recovery(report: Report) -> Estimate:
    """NaN where any task was not measured: means of different tasks cannot be compared."""
    # A group's figures are of its tasks, which are there too.
    values = [found.recovery.value for found in report.tasks if not found.tasks]
    mean = math.fsum(values) / len(values) if values else math.nan
    return Estimate(mean, math.nan, math.nan, len(values), "tasks")


def _searched(report: Report) -> Estimate:
    found = report.search.divergence.winner if report.search else math.nan
    return Estimate(found, math.nan, math.nan, 1, "layouts")


_RECOVERY = Axis("tasks.recovery", "mean recovery in tasks", "more", _mean_recovery, lambda _: 1.0)
_SEARCHED = Axis(
    "search.divergence",
    "divergence on the search text, nats per token",
    "less",
    _searched,
    lambda _: 0.0,
    "abort_if.divergence_above",
)
