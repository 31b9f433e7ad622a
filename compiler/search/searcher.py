# SPDX-License-Identifier: Apache-2.0
"""The loop that every searcher shares: propose layouts, race them, keep the best, remember.

A searcher decides only which layouts are tried next. Budget, races, the choice of the best and
resuming are the loop's, so that searchers differ in nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from prunec.compiler.search.allowance import Allowance
from prunec.compiler.search.budget import Candidate
from prunec.compiler.search.race import (
    Outcome,
    Scorer,
    Stage,
    most_windows,
    paired,
    race,
    stages_of,
)
from prunec.compiler.search.space import Space


@dataclass(frozen=True)
class Settings:
    """offspring: candidates of one generation; step: neurons in one MLP level; windows × length:
    the tokens of the last stage; seed: of all random choices."""

    offspring: int
    step: int
    windows: int
    length: int
    seed: tuple[int, ...]


@dataclass(frozen=True)
class Observation:
    """What a race told about a candidate: how much worse than the start on the same windows."""

    candidate: Candidate
    difference: float
    error: float


@dataclass(frozen=True)
class Proposal:
    """What to try next. Contenders may become the parent; probes are only measured, on the
    windows of the single stage that they name, and need not have the size asked for.

    spent: token-forwards that finding them has taken; there may be none yet, and more to find out
    """

    candidates: list[Candidate]
    probe_windows: int | None = None
    spent: int = 0


@dataclass(frozen=True)
class Generation:
    """One line of the search's history: the best so far, and what had been spent by then."""

    generation: int
    token_forwards: int
    divergence: float


@dataclass
class State:
    """All that a search needs to go on after a generation.

    start_scores, parent_scores: divergence on every window
    tried: hashes of all contenders so far; scores are deterministic, so none is raced twice
    notes: what the searcher wants to be known, JSON-ready
    """

    parent: Candidate
    parent_scores: list[float]
    start_scores: list[float]
    token_forwards: int
    seconds: float = 0.0
    history: list[Generation] = field(default_factory=list)
    tried: set[int] = field(default_factory=set)
    observations: list[Observation] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    finished: bool = False

    @property
    def divergence(self) -> float:
        return float(np.mean(self.parent_scores))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"tried": sorted(self.tried)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> State:
        fields = dict(data)
        fields["parent"] = _candidate(data["parent"])
        fields["history"] = [Generation(**line) for line in data["history"]]
        fields["tried"] = set(data["tried"])
        fields["observations"] = [
            Observation(_candidate(o["candidate"]), o["difference"], o["error"])
            for o in data["observations"]
        ]
        return cls(**fields)


def _candidate(data: dict[str, Any]) -> Candidate:
    return Candidate(tuple((q, kv) for q, kv in data["shapes"]), tuple(data["widths"]))


class Searcher(Protocol):
    """Chooses what is tried next; must be a function of its arguments alone, so that a search can
    be resumed. `most`: windows that the proposal may have scored, over all its candidates, and what
    it spends itself among them."""

    def propose(
        self, state: State, settings: Settings, most: int, rng: np.random.Generator
    ) -> Proposal: ...


def search(
    searcher: Searcher,
    space: Space,
    scorer: Scorer,
    start: Candidate,
    settings: Settings,
    allowance: Allowance,
    *,
    resumed: State | None = None,
    on_generation: Callable[[State], None] = lambda state: None,
) -> State:
    """Search from `start` until another generation would overdraw the allowance.

    `on_generation` is called after every generation with a state from which a later call may be
    `resumed`; the outcome is the same as that of an uninterrupted search (by tokens: a clock does
    not strike twice alike).
    """
    budget, windows = space.budget, settings.windows
    state = resumed
    if state is None:
        scores = scorer.rebase(budget.layout(start)).tolist()
        allowance.spend(windows * settings.length)
        state = State(start, scores, scores, allowance.used_tokens, allowance.used_seconds)
        state.tried.add(hash(start))
        state.history.append(Generation(0, state.token_forwards, state.divergence))
        on_generation(state)
    elif not state.finished:
        scorer.rebase(budget.layout(start))
    reference = np.array(state.start_scores)
    while not state.finished:
        number = state.history[-1].generation + 1
        # A generator of its own for every generation: nothing to carry over a resume.
        rng = np.random.default_rng([*settings.seed, number])
        order: list[int] = rng.spawn(1)[0].permutation(windows).tolist()
        most = allowance.left // settings.length
        proposal = searcher.propose(state, settings, most, rng)
        if proposal.spent:
            allowance.spend(proposal.spent)
        pool, probing = proposal.candidates, proposal.probe_windows
        stages = [Stage(len(pool), probing)] if probing else stages_of(len(pool), windows)
        cost = most_windows(stages) * settings.length if pool else 0
        state.token_forwards, state.seconds = allowance.used_tokens, allowance.used_seconds
        state.finished = not (pool or proposal.spent) or not allowance.affords(cost)
        if not state.finished:
            outcome = race(budget, scorer, pool, stages, order)
            allowance.spend(outcome.scored * settings.length)
            state.observations += _observations(outcome, reference)
            best = None if probing else outcome.best(windows)
            if best is not None and outcome.scores[best].mean() < state.divergence:
                state.parent = best
                state.parent_scores = outcome.scores[best][np.argsort(outcome.windows)].tolist()
            if not probing:
                state.tried.update(map(hash, pool))
            state.token_forwards = allowance.used_tokens
            state.seconds = allowance.used_seconds
            state.history.append(Generation(number, state.token_forwards, state.divergence))
        on_generation(state)
    return state


def _observations(outcome: Outcome, reference: NDArray[np.float64]) -> list[Observation]:
    """What a race told. One window does not say how uncertain it is: it is taken for as uncertain
    as those of the candidates that were scored on more."""
    start = reference[outcome.windows]
    told = {c: scores for c, scores in outcome.scores.items() if np.isfinite(scores).all()}
    spreads = [np.var(s - start[: len(s)], ddof=1) for s in told.values() if len(s) > 1]
    usual = math.sqrt(np.mean(spreads)) if spreads else 0.0
    found = []
    for candidate, scores in told.items():
        difference, error = paired(scores, start)
        found.append(Observation(candidate, difference, error if len(scores) > 1 else usual))
    return found


def affordable_offspring(settings: Settings, most: int) -> int:
    """The largest pool, up to the one asked for, whose race scores at most `most` windows."""
    count = settings.offspring
    while count and most_windows(stages_of(count, settings.windows)) > most:
        count -= 1
    return count
