# SPDX-License-Identifier: Apache-2.0
"""Races: many candidates on few tokens, few on many, all compared on the same windows.

A candidate keeps what it was scored on: every stage adds windows and repeats none. Differences
are paired with the leader's on the same windows, so that text that is hard for all of them says
nothing.

Source: successive halving as in Týr-the-Pruner and EvoPress; pairing as in F-Race (Birattari et
al., 2002).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from prunec.compiler.model.layout import Layout
from prunec.compiler.search.budget import Budget, Candidate

#: Each stage keeps a quarter of its candidates and gives them four times the tokens.
STAGES = 3
NARROWING = 4

#: Standard errors behind the leader at which a candidate is out, whatever its place.
HOPELESS = 3.0


class Scorer(Protocol):
    """What candidates are scored by."""

    def rebase(self, layout: Layout) -> Tensor: ...

    def scored(self, layouts: Sequence[Layout], windows: slice) -> Iterable[Tensor]:
        """The divergences of each layout on some windows, in their order."""
        ...


@dataclass(frozen=True)
class Stage:
    """So many candidates are scored up to so many windows."""

    candidates: int
    windows: int


def stages_of(candidates: int, windows: int) -> list[Stage]:
    """The stages of a race on `windows` windows in all."""
    return [
        Stage(
            max(1, candidates // NARROWING**number),
            max(1, windows // NARROWING ** (STAGES - 1 - number)),
        )
        for number in range(STAGES)
    ]


def most_windows(stages: Sequence[Stage]) -> int:
    """Windows that a race scores at most, over all candidates."""
    total, before = 0, 0
    for stage in stages:
        total += stage.candidates * (stage.windows - before)
        before = stage.windows
    return total


@dataclass(frozen=True)
class Outcome:
    """scores: of every candidate, on the windows that it got to; scored: windows in all."""

    scores: dict[Candidate, NDArray[np.float64]]
    scored: int

    def best(self, windows: int) -> Candidate | None:
        """The best of those that were scored on all of `windows`."""
        finals = {c: scores.mean() for c, scores in self.scores.items() if len(scores) == windows}
        return min(finals, key=finals.__getitem__) if finals else None


def race(
    budget: Budget, scorer: Scorer, pool: Sequence[Candidate], stages: Sequence[Stage]
) -> Outcome:
    """Run a race; candidates that stop being finite are as bad as can be, not an error."""
    scores: dict[Candidate, NDArray[np.float64]] = {c: np.empty(0) for c in pool}
    running, scored, before = list(pool), 0, 0
    for stage in stages:
        running = running[: stage.candidates]
        due = running if stage.windows > before else []
        layouts = [budget.layout(candidate) for candidate in due]
        found = scorer.scored(layouts, slice(before, stage.windows))
        for candidate, more in zip(due, found, strict=True):
            values = np.nan_to_num(more.numpy(), nan=math.inf, posinf=math.inf, neginf=math.inf)
            scores[candidate] = np.concatenate([scores[candidate], values])
            scored += stage.windows - before
        before = stage.windows
        running.sort(key=lambda candidate: float(scores[candidate].mean()))
        running = [c for c in running if not _hopeless(scores[c], scores[running[0]])]
    return Outcome(scores, scored)


def _hopeless(scores: NDArray[np.float64], leader: NDArray[np.float64]) -> bool:
    if not np.isfinite(scores).all():
        return bool(np.isfinite(leader).all())
    behind, error = paired(scores, leader)
    return behind > HOPELESS * error > 0


def paired(scores: NDArray[np.float64], others: NDArray[np.float64]) -> tuple[float, float]:
    """Mean of the differences on common windows, and its standard error (0 for one window)."""
    difference = scores - others[: len(scores)]
    count = len(difference)
    error = float(difference.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0
    return float(difference.mean()), error
