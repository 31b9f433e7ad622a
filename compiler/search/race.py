# SPDX-License-Identifier: Apache-2.0
"""Races: many candidates on few tokens, few on many, all compared on the same windows.

A candidate keeps what it was scored on: every stage adds windows and repeats none. Differences
are paired with the leader's on the same windows, so that text that is hard for all of them says
nothing. Which windows come first is drawn anew for every race: most candidates are out after the
first few, and what suits those would win every race if they were always the same.

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

    def scored(self, layouts: Sequence[Layout], windows: Sequence[int]) -> Iterable[Tensor]:
        """The divergences of each layout on some windows, by their numbers and in their order."""
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
    """windows: their numbers, as they were come to; scores: of every candidate, on the first of
    these, as far as it got; scored: how many windows in all."""

    windows: Sequence[int]
    scores: dict[Candidate, NDArray[np.float64]]
    scored: int

    def best(self, windows: int) -> Candidate | None:
        """The best of those that were scored on all of `windows`."""
        finals = {c: scores.mean() for c, scores in self.scores.items() if len(scores) == windows}
        return min(finals, key=finals.__getitem__) if finals else None


def race(
    budget: Budget,
    scorer: Scorer,
    pool: Sequence[Candidate],
    stages: Sequence[Stage],
    order: Sequence[int],
) -> Outcome:
    """Run a race on windows in some order, of which each stage takes the next, ascending.

    Candidates that stop being finite are as bad as can be, not an error.
    """
    scores: dict[Candidate, NDArray[np.float64]] = {c: np.empty(0) for c in pool}
    running, scored = list(pool), 0
    windows: list[int] = []
    for stage in stages:
        running = running[: stage.candidates]
        due = sorted(order[len(windows) : stage.windows])
        if not due:
            continue
        found = scorer.scored([budget.layout(candidate) for candidate in running], due)
        for candidate, more in zip(running, found, strict=True):
            values = np.nan_to_num(more.numpy(), nan=math.inf, posinf=math.inf, neginf=math.inf)
            scores[candidate] = np.concatenate([scores[candidate], values])
            scored += len(due)
        windows += due
        running.sort(key=lambda candidate: float(scores[candidate].mean()))
        running = [c for c in running if not _hopeless(scores[c], scores[running[0]])]
    return Outcome(windows, scores, scored)


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
