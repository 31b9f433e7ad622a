# SPDX-License-Identifier: Apache-2.0
"""Builds of one recipe beside each other: the Pareto front, those that pass, the best of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from prunec.validators.intervals import bounds, level
from prunec.validators.results import Report, finite
from prunec.validators.sweep_axes import PARAMETERS, Axis, quality_axis, speed_axes
from prunec.validators.units import count, number
from prunec.validators.verdicts import verdict

SCHEMA_VERSION = 1

PointVerdict = Literal["passed", "failed", "inconclusive", "measured", "not built"]


@dataclass(frozen=True)
class SweepPoint:
    """One build of a sweep.

    label: what varies, as `key=value`; folder: the build's, relative to the sweep's
    report: None where it could not be built, and `error` says why
    settings: what varies, by key
    """

    label: str
    folder: str
    report: Report | None
    error: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The values alone, for where the keys are said beside them."""
        return ", ".join(self.settings.values()) or self.label

    @property
    def verdict(self) -> PointVerdict:
        return verdict(self.report) if self.report else "not built"


@dataclass(frozen=True)
class SweepResult:
    """All builds of a sweep. `command`: what makes them again."""

    recipe: str
    command: str
    points: tuple[SweepPoint, ...]

    @property
    def reports(self) -> list[Report]:
        return [point.report for point in self.points if point.report]

    @cached_property
    def quality(self) -> Axis | None:
        """What says how good the points are; None if nothing that was measured does."""
        return quality_axis(self.reports)

    @cached_property
    def axes(self) -> list[Axis]:
        """What quality is paid for with: parameters, and every measured speed."""
        return [PARAMETERS, *speed_axes(self.reports)]

    def front(self, axis: Axis = PARAMETERS) -> tuple[SweepPoint, ...]:
        """The Pareto front of quality against an axis, along the axis.

        Points that no other is at least as good as in both and better in one. What was not measured
        in both is not among them.
        """
        if (quality := self.quality) is None:
            return ()
        placed = []
        for point in self.points:
            if point.report is not None:
                losses = (axis.loss(point.report), quality.loss(point.report))
                if all(map(math.isfinite, losses)):
                    placed.append((losses, point))
        placed.sort(key=lambda pair: pair[0])
        best = [
            (losses, point)
            for losses, point in placed
            if not any(_dominates(other, losses) for other, _ in placed)
        ]
        return tuple(point for _, point in (best if axis.better == "less" else reversed(best)))

    @property
    def passing(self) -> tuple[SweepPoint, ...]:
        """The points that have gates and pass all of them."""
        return tuple(point for point in self.points if point.verdict == "passed")

    @property
    def best(self) -> SweepPoint | None:
        """The smallest model that passes all its gates; of equally small ones the better one."""

        def rank(point: SweepPoint) -> tuple[int, float]:
            assert point.report is not None  # it passes
            loss = self.quality.loss(point.report) if self.quality else math.nan
            return point.report.pruned.parameters, loss if math.isfinite(loss) else math.inf

        return min(self.passing, key=rank, default=None)

    @property
    def verdict(self) -> PointVerdict:
        """The best that happened to any point: one that passes is what a sweep looks for."""
        met = {point.verdict for point in self.points}
        order: Sequence[PointVerdict] = ("passed", "measured", "inconclusive", "failed")
        return next((word for word in order if word in met), "not built")

    @property
    def sentence(self) -> str:
        """Which point is best, or why none is."""
        if (best := self.best) is not None:
            return f"Best that passes: {best.label}, with {self._described(best)}."
        if not self.reports:
            return "None of the points could be built."
        if self.verdict == "measured":
            return "The recipe sets no gates: nothing was judged, and no point is named the best."
        return "No point passes all its gates."

    @property
    def title(self) -> str:
        """The recipe, and the best point or what was varied."""
        if (best := self.best) is not None:
            return f"{self.recipe}, best at {best.label}"
        return f"{self.recipe} over {', '.join(self.keys)}" if self.keys else self.recipe

    @property
    def keys(self) -> list[str]:
        """What varies, as dotted keys."""
        return list(dict.fromkeys(key for point in self.points for key in point.settings))

    @property
    def tally(self) -> str:
        """How many points did what."""
        order: Sequence[PointVerdict] = (
            "passed",
            "inconclusive",
            "failed",
            "measured",
            "not built",
        )
        counts = {word: sum(point.verdict == word for point in self.points) for word in order}
        said = ", ".join(f"{counted} {word}" for word, counted in counts.items() if counted)
        return f"{len(self.points)} points: {said}."

    def _described(self, point: SweepPoint) -> str:
        assert point.report is not None
        pruned, dense = point.report.pruned.parameters, point.report.dense.parameters
        share = f"{pruned / dense:.1%}".replace("%", " %")
        text = f"{count(pruned)} parameters ({share} of the dense model's)"
        if self.quality is None:
            return text
        found = self.quality.of(point.report)
        if not math.isfinite(found.value):
            return text
        text += f" and {self.quality.title} {number(found.value, 3)}"
        if math.isfinite(found.low) and math.isfinite(found.high):
            text += f" ({level(found)} interval {bounds(found)})"
        return text

    def as_dict(self) -> dict[str, Any]:
        """The content of sweep.json: plain data, finite numbers or null."""
        content = {
            "schema_version": SCHEMA_VERSION,
            "recipe": self.recipe,
            "command": self.command,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "best": self.best.label if self.best else None,
            "passing": [point.label for point in self.passing],
            "quality": self.quality.key if self.quality else None,
            "fronts": {axis.key: [p.label for p in self.front(axis)] for axis in self.axes},
            "points": [self._point_dict(point) for point in self.points],
        }
        plain: dict[str, Any] = finite(content)
        return plain

    def _point_dict(self, point: SweepPoint) -> dict[str, Any]:
        head = {
            "label": point.label,
            "settings": dict(point.settings),
            "folder": point.folder,
            "verdict": point.verdict,
            "error": point.error,
        }
        if (report := point.report) is None:
            return head
        axes = [*([self.quality] if self.quality else []), *self.axes[1:]]
        return head | {
            "dense": asdict(report.dense),
            "pruned": asdict(report.pruned) | {"sparsity": report.sparsity},
            "numbers": {axis.key: asdict(axis.of(report)) for axis in axes},
            "perplexity": asdict(report.perplexity) if report.perplexity else None,
            "elsewhere": {name: asdict(text) for name, text in report.elsewhere.items()},
            "tasks": [asdict(task) for task in report.tasks],
            "speeds": [asdict(speed) for speed in report.speeds],
            "gates": [asdict(gate) for gate in report.gates],
            "token_forwards": report.cost.token_forwards,
            "seconds": report.cost.seconds,
        }


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether `one` is at least as good in everything and better in something; less is better."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)
