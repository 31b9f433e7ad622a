# SPDX-License-Identifier: Apache-2.0
"""What a tuner may choose: dimensions by name, and the settings that a point among them means.

Every trial has all dimensions, so that a sampler can learn how they depend on each other; what a
point leaves without effect is not in its settings, and two points may mean the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from prunec.compiler.tuning.settings import CalibrationChoice, Settings

#: Scores of whole vectors, and of single elements by the order of their Taylor expansion.
VECTOR = "taylor_vector"
ELEMENTS = {"first": "taylor_first", "second": "taylor_second", "mixed": "taylor_mixed"}

FAITHFUL_AGGREGATIONS = ("sum", "product", "max", "last")
FAITHFUL_EXPONENTS = (0.5, 1.0, 2.0)

#: How far an allocation may depart from uniform.
SPREAD = (0.125, 1.0)

#: Settings are rounded to so many significant digits, which is more than trials can tell apart.
DIGITS = 4

#: Dimensions that are said by the names of what they decide.
_OF_METHOD = (
    "aggregation",
    "exponent",
    "allocation",
    "spread",
    "slope",
    "bend",
    "attention",
    "first_order",
    "damping",
)

_ALL = "all"
_SHARE_EXPONENT = 3


@dataclass(frozen=True)
class Choice:
    """One of several values, without order."""

    values: tuple[str | int | float, ...]

    @property
    def single(self) -> bool:
        return len(self.values) == 1


@dataclass(frozen=True)
class Interval:
    """A number from `low` to `high`, on a logarithmic scale if `log`."""

    low: float
    high: float
    log: bool = False

    @property
    def single(self) -> bool:
        return self.low == self.high


Dimension = Choice | Interval
Value = str | int | float
Point = Mapping[str, Value]


@dataclass(frozen=True)
class TuningSpace:
    """The space as a recipe gives it.

    weights: of the parts of the calibration text, by name, as given; tuned if `mixture`
    metrics: none where the solver of `uniform` and `tyr` is tuned; its intervals are None elsewhere
    damping: an interval, or the value that all trials have
    """

    weights: Mapping[str, float]
    mixture: bool
    lengths: tuple[int, ...]
    loss_quantiles: int
    groups: int
    damping: tuple[float, float]
    first_order: tuple[float, float] = (0.0, 0.0)
    metrics: tuple[str, ...] = ()
    aggregations: tuple[str, ...] = ("sum",)
    exponents: tuple[float, ...] = (1.0,)
    allocations: tuple[str, ...] = ("uniform",)
    slope: tuple[float, float] = (0.0, 0.0)
    bend: tuple[float, float] = (0.0, 0.0)
    attention: tuple[float, float] = (1.0, 1.0)
    faithful: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The form that plans write."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> TuningSpace:
        settled: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in plain.items()
        }
        return cls(**settled)

    def dimensions(self) -> dict[str, Dimension]:
        """What there is to choose, by name; without what has one value only."""
        found: dict[str, Dimension] = {"length": Choice(self.lengths)}
        if self.mixture and len(self.weights) > 1:
            found |= {f"mixture.{part}": Interval(0.0, 1.0) for part in self.weights}
        if self.loss_quantiles > 1:
            found["quantile"] = Choice((_ALL, *range(self.loss_quantiles)))
        found["groups"] = Choice(tuple(range(1, self.groups + 1)))
        found["group_seed"] = Choice(tuple(range(self.groups)))
        if self.faithful:
            found["vector"] = Interval(0.0, 1.0)
            found["order"] = Choice(tuple(ELEMENTS))
        elif len(self.metrics) > 1:
            found |= {f"metric.{name}": Interval(0.0, 1.0) for name in self.metrics}
        found["aggregation"] = Choice(self.aggregations)
        found["exponent"] = Choice(self.exponents)
        found["allocation"] = Choice(self.allocations)
        if any(allocation != "uniform" for allocation in self.allocations):
            found["spread"] = Interval(*SPREAD, log=True)
        found["slope"], found["bend"] = Interval(*self.slope), Interval(*self.bend)
        found["attention"] = Interval(*self.attention, log=True)
        found["first_order"] = Interval(*self.first_order)
        found["damping"] = Interval(*self.damping, log=True)
        return {name: dimension for name, dimension in found.items() if not dimension.single}

    def settings(self, point: Point) -> Settings:
        """What a point means."""
        allocation = str(point.get("allocation", self.allocations[0]))
        return Settings(
            calibration=self._calibration(point),
            damping=_chosen(point, "damping", self.damping[0]),
            first_order=_chosen(point, "first_order", self.first_order[0]),
            metrics=self._metrics(point),
            aggregation=str(point.get("aggregation", self.aggregations[0])),
            exponent=float(point.get("exponent", self.exponents[0])),
            by_part=self.faithful,
            allocation=allocation,
            spread=_chosen(point, "spread", 1.0) if allocation != "uniform" else 1.0,
            slope=_chosen(point, "slope", self.slope[0]),
            bend=_chosen(point, "bend", self.bend[0]),
            attention=_chosen(point, "attention", self.attention[0]),
        )

    def _calibration(self, point: Point) -> CalibrationChoice:
        quantile = point.get("quantile", _ALL)
        count, first = int(point.get("groups", self.groups)), int(point.get("group_seed", 0))
        # Windows were dealt at random: groups that follow each other are as good as any others.
        groups = sorted((first + i) % self.groups for i in range(count))
        return CalibrationChoice(
            length=int(point.get("length", self.lengths[0])),
            weights=_shares(point, "mixture.", self.weights),
            quantile=None if quantile == _ALL else int(quantile),
            groups=tuple(groups),
        )

    def _metrics(self, point: Point) -> dict[str, float]:
        if not self.faithful:
            return _shares(point, "metric.", dict.fromkeys(self.metrics, 1.0))
        vector = _rounded(point["vector"])
        weights = {VECTOR: vector, ELEMENTS[str(point["order"])]: _rounded(1 - vector)}
        return {name: weight for name, weight in weights.items() if weight}

    def described(self, settings: Settings) -> dict[str, str | float]:
        """What was chosen, for reports: by the names of dimensions, for people where a value of
        theirs says little by itself."""
        chosen, calibration = self.dimensions(), settings.calibration
        said: dict[str, str | float] = {}
        if "length" in chosen:
            said["length"] = calibration.length
        if f"mixture.{next(iter(self.weights))}" in chosen:
            said |= {f"mixture.{part}": share for part, share in calibration.weights.items()}
        if "quantile" in chosen:
            number = calibration.quantile
            said["quantile"] = _ALL if number is None else f"{number + 1} of {self.loss_quantiles}"
        if "groups" in chosen:
            said["groups"] = f"{len(calibration.groups)} of {self.groups}"
            if len(calibration.groups) < self.groups:
                said["group_seed"] = " and ".join(str(group + 1) for group in calibration.groups)
        if self.faithful or len(self.metrics) > 1:
            said |= {f"metric.{name}": weight for name, weight in settings.metrics.items()}
        plain = settings.of_method()
        for name in _OF_METHOD:
            if name in chosen and not (name == "spread" and settings.allocation == "uniform"):
                said[name] = plain[name]
        return said

    def starts(self) -> list[Point]:
        """The plain settings that trials begin with: each metric by itself, on all the text."""
        dimensions = self.dimensions()

        def start(metric: str) -> Point:
            wanted: dict[str, Value] = {
                "length": self.lengths[-1],
                "quantile": _ALL,
                "groups": self.groups,
                "vector": 0.5,
                "exponent": 1.0,
                "spread": 1.0,
                "attention": 1.0,
                "damping": 0.01,
            }
            wanted |= {f"metric.{name}": float(name == metric) for name in self.metrics}
            largest = max(self.weights.values())
            for part, weight in self.weights.items():
                wanted[f"mixture.{part}"] = (weight / largest) ** (1 / _SHARE_EXPONENT)
            return {
                name: _nearest(dimension, wanted.get(name))
                for name, dimension in dimensions.items()
            }

        if not dimensions:
            return []
        if self.faithful or not self.metrics:
            return [start("")]
        return [start(metric) for metric in self.metrics]


def _shares(point: Point, prefix: str, given: Mapping[str, float]) -> dict[str, float]:
    """Weights that sum to one, without those of nothing; those given where none are chosen.

    A share is the cube of what is chosen: one of many that counts most is as likely as a mixture.
    """
    chosen = {
        name.removeprefix(prefix): float(value) ** _SHARE_EXPONENT
        for name, value in point.items()
        if name.startswith(prefix)
    }
    weights = chosen if sum(chosen.values()) > 0 else dict(given)
    total = sum(weights.values())
    shares = {name: round(weight / total, DIGITS) for name, weight in sorted(weights.items())}
    return {name: share for name, share in shares.items() if share}


def _nearest(dimension: Dimension, wanted: Value | None) -> Value:
    """The value itself where it may be chosen, else the nearest end or the first."""
    if isinstance(dimension, Choice):
        return wanted if wanted in dimension.values else dimension.values[0]
    return min(max(float(wanted or 0.0), dimension.low), dimension.high)


def _chosen(point: Point, name: str, fixed: float) -> float:
    return _rounded(point[name]) if name in point else fixed


def _rounded(value: Value) -> float:
    return float(f"{float(value):.{DIGITS}g}")
