# SPDX-License-Identifier: Apache-2.0
"""What one trial is: the text that it calibrates on, and how it scores units or poses problems."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class CalibrationChoice:
    """The windows that a trial calibrates on.

    length: tokens in a window
    weights: shares of the tokens, by part of the calibration text; those above 0
    quantile: class of windows by the dense model's loss, 0 the easiest; None for all of them
    groups: numbers of the groups of windows, ascending
    """

    length: int
    weights: Mapping[str, float]
    quantile: int | None
    groups: tuple[int, ...]


@dataclass(frozen=True)
class Settings:
    """Everything that a trial's result depends on beside the model and its text.

    metrics, aggregation, exponent and what follows are those of method `importance`, and without
    metrics nothing is scored by them (by_part: as of `Scoring`); damping and first_order are those
    of local problems.
    """

    calibration: CalibrationChoice
    damping: float
    first_order: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    aggregation: str = "sum"
    exponent: float = 1.0
    by_part: bool = False
    allocation: str = "uniform"
    spread: float = 1.0
    slope: float = 0.0
    bend: float = 0.0
    attention: float = 1.0

    @property
    def all_alike(self) -> bool:
        """Whether every sublayer keeps the same share."""
        bent = self.slope != 0 or self.bend != 0 or self.attention != 1
        return self.allocation == "uniform" and not bent

    def as_dict(self) -> dict[str, Any]:
        """Plain data; equal settings give equal data."""
        plain = asdict(self)
        plain["calibration"]["groups"] = list(self.calibration.groups)
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Settings:
        calibration = dict(plain["calibration"])
        calibration["groups"] = tuple(calibration["groups"])
        return cls(**{**plain, "calibration": CalibrationChoice(**calibration)})

    def of_method(self) -> dict[str, Any]:
        """What the pruning steps obey, by the names of their own parameters."""
        plain = self.as_dict()
        del plain["calibration"]
        return plain
