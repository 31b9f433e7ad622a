# SPDX-License-Identifier: Apache-2.0
"""Predict what a layout costs in divergence, solve for the best one, learn from what is measured.

A supernet knows the squared error of every sublayer at every size. The surrogate adds them up,
each times the sublayer's sensitivity, which a few probes and every race teach it (Bayesian linear
regression). Each generation draws sensitivities from what is known, solves the budget for each
draw over attention, MLPs and depth together, a few levels around the best so far, and races the
solutions (Thompson sampling) beside mutants, so that a misleading surrogate is found out.

Source: additive sensitivities as in ZipLM and in mixed-precision allocation; the curves from one
factorisation and the use of Thompson sampling ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunec.compiler.passes.nested import NestedLayer
from prunec.compiler.search.budget import Candidate, Shape
from prunec.compiler.search.evolutionary import mutants
from prunec.compiler.search.knapsack import cheapest
from prunec.compiler.search.searcher import (
    Observation,
    Proposal,
    Settings,
    State,
    affordable_offspring,
)
from prunec.compiler.search.space import Space

Numbers = NDArray[np.float64]

#: How far solutions may go from the best so far, by turns: levels that a sublayer may move, and
#: what a move has to gain to be made, as a share of the median of what single moves gain. The
#: gains of many moves at once do not simply add up.
REACHES = ((1, 0.0), (1, 0.5), (2, 0.5), (1, 1.0), (2, 1.0), (1, 2.0))

#: Relative error of sums of curves, which no number of windows takes away.
MISFIT = 0.1

#: Share of an allowance that probes may take, and of the windows that one probe may.
PROBING = 0.2
PROBE_WINDOWS = 0.25

#: Shares of a generation: solutions of the surrogate, mutants that it likes; the rest are mutants
#: that it has not seen, which keep its rank correlation honest.
SOLVED, SCREENED = 0.5, 0.25
SCREENING = 8  # mutants looked at for every one that is liked

#: Below this rank correlation the next generation is mutants alone; they are predicted as well, so
#: that trust may come back.
MISLEADING = 0.2

#: Spread of a sensitivity around what is expected of its kind, and around an earlier round's,
#: as shares of it.
KIND_SPREAD, ROUND_SPREAD = 1.0, 0.5


@dataclass(frozen=True)
class ErrorCurves:
    """Squared errors of sublayers as shares of the energy of the stream that they add to.

    attention: of every layer, by shape; mlp: of every layer, [ffn + 1], by width
    """

    attention: Sequence[Mapping[Shape, float]]
    mlp: Sequence[Numbers]

    @classmethod
    def of(cls, supernet: Sequence[NestedLayer]) -> ErrorCurves:
        attention, mlp = [], []
        for nested in supernet:
            errors = nested.attention.solution.excess_errors().cpu()
            energy, head_dim = nested.attention.stream_energy, nested.attention.head_dim
            attention.append(
                {
                    (queries, kv): float(errors[queries * head_dim]) / energy
                    for queries, kv in nested.attention.shapes
                }
            )
            errors = nested.mlp.solution.excess_errors().cpu()
            mlp.append(errors.double().numpy() / nested.mlp.stream_energy)
        return cls(attention, mlp)

    def of_candidate(self, candidate: Candidate) -> Numbers:
        """[2 * layers]: attention of every layer, then MLPs."""
        attention = [e[s] for e, s in zip(self.attention, candidate.shapes, strict=True)]
        mlp = [e[w] for e, w in zip(self.mlp, candidate.widths, strict=True)]
        return np.array(attention + mlp)


@dataclass(frozen=True)
class Beliefs:
    """What is known of the sensitivities, in nats: mean and covariance."""

    mean: Numbers
    covariance: Numbers

    def draw(self, rng: np.random.Generator) -> Numbers:
        """Sensitivities that are possible; none is negative: less error never hurts."""
        drawn = rng.multivariate_normal(self.mean, self.covariance, method="eigh")
        return np.maximum(drawn, 0.05 * np.maximum(self.mean, 0) + 1e-12)


def learn(
    curves: ErrorCurves,
    start: Candidate,
    observations: Sequence[Observation],
    prior: Sequence[float] | None = None,
) -> Beliefs:
    """Sensitivities from differences to the start, each worth as much as it is certain.

    prior: the sensitivities of an earlier round, whose supernet stood around another centre
    """
    base = curves.of_candidate(start)
    rows = np.array([curves.of_candidate(o.candidate) - base for o in observations])
    rows = rows.reshape(len(observations), len(base))
    target = np.array([o.difference for o in observations])
    error = np.array([o.error for o in observations])
    noise = np.sqrt(error**2 + (MISFIT * target) ** 2 + 1e-10)
    rows, target = rows / noise[:, None], target / noise
    mean, spread = _expected(rows, target, prior)
    # Posterior of a normal prior and a normal likelihood of unit noise.
    covariance = np.linalg.inv(rows.T @ rows + np.diag(spread**-2.0))
    return Beliefs(covariance @ (rows.T @ target + mean / spread**2), covariance)


def _expected(
    rows: Numbers, target: Numbers, prior: Sequence[float] | None
) -> tuple[Numbers, Numbers]:
    """Mean and spread before looking at single sublayers: those of the sublayer's kind."""
    sites = rows.shape[1]
    if prior is not None:
        mean = np.maximum(np.array(prior), 1e-12)
        return mean, ROUND_SPREAD * mean + 0.1 * mean.mean()
    mean = np.empty(sites)
    for kind in (slice(0, sites // 2), slice(sites // 2, sites)):
        pooled = rows[:, kind].sum(axis=1)
        scale = float(pooled @ target) / max(float(pooled @ pooled), 1e-300)
        mean[kind] = max(scale, 0.0)
    mean = np.maximum(mean, 0.1 * mean.max() + 1e-12)
    return mean, KIND_SPREAD * mean


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's, for values without ties."""
    ranks = np.array([np.argsort(np.argsort(values)) for values in (one, other)])
    return float(np.corrcoef(ranks)[0, 1])


@dataclass(frozen=True)
class Surrogate:
    """The default searcher: probes first, then solutions of what was learnt."""

    space: Space
    curves: ErrorCurves
    start: Candidate
    prior: Sequence[float] | None = None

    def propose(
        self, state: State, settings: Settings, most: int, rng: np.random.Generator
    ) -> Proposal:
        if self.prior is None and not state.observations:
            probes = self._probes(settings, most)
            if probes is not None:
                state.notes["probes"] = len(probes.candidates)
                return probes
        trusted = self._judge(state)
        count = affordable_offspring(settings, most)
        beliefs = learn(self.curves, self.start, state.observations, self.prior)
        state.notes["sensitivities"] = beliefs.mean.tolist()
        chosen: list[Candidate] = []
        if trusted:
            chosen = self._solutions(state, settings, beliefs, round(SOLVED * count), rng)
            liked = mutants(self.space, state, settings.step, SCREENING * count, rng)
            liked.sort(key=lambda candidate: self.predict(beliefs.mean, candidate))
            chosen += liked[: round(SCREENED * count)]
        unseen = mutants(self.space, state, settings.step, count, rng)
        contenders = list(dict.fromkeys([*chosen, *unseen]))[:count]
        # To be held against what the race says.
        state.notes["predictions"] = [[hash(c), self.predict(beliefs.mean, c)] for c in contenders]
        return Proposal(contenders)

    def predict(self, sensitivities: Numbers, candidate: Candidate) -> float:
        """Divergence of a candidate, in nats per token."""
        return float(self.curves.of_candidate(candidate) @ sensitivities)

    def _probes(self, settings: Settings, most: int) -> Proposal | None:
        """Every sublayer once smaller and once larger than at the start, the others as they are.

        With too small an allowance for both only the smaller ones, with less none at all.
        """
        smaller: list[Candidate] = []
        larger: list[Candidate] = []
        for group in self.space.groups:
            for direction, probes in ((-1, smaller), (+1, larger)):
                probes.append(self.space.moved_attention(self.start, group, direction))
                probes.append(self.space.moved_mlp(self.start, group, direction * settings.step))
        for probes in ([*smaller, *larger], smaller):
            probes = list(dict.fromkeys(probe for probe in probes if probe != self.start))
            windows = int(PROBING * most / max(len(probes), 1))
            if probes and windows >= 1:
                most_a_probe = max(1, int(PROBE_WINDOWS * settings.windows))
                return Proposal(probes, min(windows, most_a_probe))
        return None

    def _judge(self, state: State) -> bool:
        """Hold the last generation's predictions against its race: whether to go on with them."""
        predictions = state.notes.pop("predictions", [])
        measured = {hash(o.candidate): o.difference for o in state.observations}
        pairs = [(value, measured[key]) for key, value in predictions if key in measured]
        if len(pairs) < 4:
            return True
        correlation = rank_correlation(*zip(*pairs, strict=True))
        correlations = [*state.notes.get("rank_correlations", []), round(correlation, 4)]
        state.notes["rank_correlations"] = correlations
        if correlation >= MISLEADING:
            return True
        distrusted = sum(c < MISLEADING for c in correlations)
        state.notes["fell_back"] = (
            f"after {distrusted} of {len(correlations)} generations its rank correlation was below "
            f"{MISLEADING}, and mutants of the best layout followed alone"
        )
        return False

    def _solutions(
        self,
        state: State,
        settings: Settings,
        beliefs: Beliefs,
        count: int,
        rng: np.random.Generator,
    ) -> list[Candidate]:
        """Best layouts for the best guess, then for draws, at every reach by turns."""
        found: dict[Candidate, None] = {}
        for attempt in range(2 * count):
            reach = REACHES[attempt % len(REACHES)]
            best_guess = attempt < len(REACHES)
            guess = np.maximum(beliefs.mean, 1e-12) if best_guess else beliefs.draw(rng)
            solution = self._solve(guess, state.parent, settings.step, *reach)
            if solution is not None:
                solution = self.space.balanced(solution, settings.step, rng)
            if solution is not None and hash(solution) not in state.tried:
                found[solution] = None
            if len(found) == count:
                break
        return list(found)

    def _solve(
        self, sensitivities: Numbers, around: Candidate, step: int, radius: int, fee: float
    ) -> Candidate | None:
        """The best layout of about the size asked for, if the sensitivities are these."""
        space, budget = self.space, self.space.budget
        options: list[list[Candidate]] = []  # of every site: `around` with this site changed
        for group in space.groups:
            moves = range(-radius, radius + 1)
            options.append(_distinct(space.moved_attention(around, group, m) for m in moves))
            options.append(_distinct(space.moved_mlp(around, group, m * step) for m in moves))
        costs = [np.array([budget.size(c) for c in site]) for site in options]
        values = [np.array([self.predict(sensitivities, c) for c in site]) for site in options]
        here = self.predict(sensitivities, around)
        gains = [np.abs(value - here).max() for value in values]
        moved = [np.array([candidate != around for candidate in site]) for site in options]
        due = fee * float(np.median(gains))
        values = [value + due * move for value, move in zip(values, moved, strict=True)]
        # What the other sites cost is in every option of a site: only what differs is added up.
        least = [cost.min() for cost in costs]
        spare = budget.limit - budget.size(around) + sum(budget.size(around) - c for c in least)
        picked = cheapest([c - m for c, m in zip(costs, least, strict=True)], values, spare)
        if picked is None:
            return None
        shapes, widths = list(around.shapes), list(around.widths)
        for number, group in enumerate(space.groups):
            attention = options[2 * number][picked[2 * number]]
            mlp = options[2 * number + 1][picked[2 * number + 1]]
            for layer in group:
                shapes[layer], widths[layer] = attention.shapes[layer], mlp.widths[layer]
        return Candidate(tuple(shapes), tuple(widths))


def _distinct(candidates: Iterable[Candidate]) -> list[Candidate]:
    return list(dict.fromkeys(candidates))
