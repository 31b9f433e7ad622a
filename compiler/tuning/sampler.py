# SPDX-License-Identifier: Apache-2.0
"""Optuna's samplers, drawing anew for every trial from a seed of its own.

A trial's settings then depend on the trials before it and nothing else: a study that was killed
goes on as if it had not been.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from prunec.compiler.tuning.space import Point


class SeededSampler(BaseSampler):  # type: ignore[misc]  # Optuna may be absent where this is typed
    """TPE, or random draws; the first trials have the points in `starts`.

    startup: trials that are drawn at random before TPE learns from them, `starts` among them
    """

    def __init__(self, kind: str, seed: int, startup: int, starts: Sequence[Point]) -> None:
        self.kind = kind
        self.seed = seed
        self.startup = startup
        self.starts = starts

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        if self.kind == "random" or trial.number < len(self.starts):
            return {}
        space: dict[str, BaseDistribution] = self._tpe(trial).infer_relative_search_space(
            study, trial
        )
        return space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        point: dict[str, Any] = self._tpe(trial).sample_relative(study, trial, search_space)
        return point

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        if trial.number < len(self.starts):
            return self.starts[trial.number][param_name]
        if self.kind == "random":
            sampler = RandomSampler(seed=self._seed(trial, param_name))
        else:
            sampler = self._tpe(trial, param_name)
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def _tpe(self, trial: FrozenTrial, name: str = "") -> TPESampler:
        # Other builds' running trials count as bad ones, so that two builds do not try the same.
        return TPESampler(
            n_startup_trials=self.startup,
            multivariate=True,
            constant_liar=True,
            seed=self._seed(trial, name),
        )

    def _seed(self, trial: FrozenTrial, name: str) -> int:
        text = f"{self.seed}/{trial.number}/{name}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
