# SPDX-License-Identifier: Apache-2.0
"""What is measured of a pruned model beside the dense one: plain nouns, every number with how sure
it is.

What is not finite is kept in them, and becomes null in JSON.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A measured value and its interval, which holds the true one with probability `level`.

    The bounds are NaN where there is nothing to estimate them from. `count`: items, windows or
    pairs that it rests on; `unit`: what these are, in the plural.
    """

    value: float
    low: float
    high: float
    count: int
    unit: str
    level: float = 0.95

    @classmethod
    def unknown(cls, unit: str) -> Estimate:
        """What nothing was measured for."""
        return cls(math.nan, math.nan, math.nan, 0, unit)


@dataclass(frozen=True)
class PerplexityResult:
    """Perplexity of both models on the same `tokens` predictions of text from `source`.

    `ratio` is pruned over dense. `divergence`: mean KL(dense ‖ pruned) of the next token's
    distribution, in nats per token. `pruned_estimate`: `pruned` with its own interval.
    `undiverged`: why there is no divergence; its numbers are NaN then. `reading`: how the text was
    cut into windows, in a phrase.
    """

    dense: float
    pruned: float
    pruned_estimate: Estimate
    ratio: Estimate
    divergence: Estimate
    tokens: int
    source: str
    undiverged: str | None = None
    reading: str = ""


@dataclass(frozen=True)
class TaskResult:
    """Both models' scores on the same `items` of a task of lm-eval, or of the tasks of a group
    together, paired item by item.

    metric: the score's name in lm-eval, of which more is better
    difference: pruned − dense; recovery: pruned ÷ dense
    pruned_estimate: `pruned` with its own interval
    floor: the score of always giving the same answer, the best one; None where that means nothing
    error: why there is no score; the numbers are NaN then
    groups: those that the recipe named and the task came from
    tasks: of a group, those that its figures are of; empty for a task
    chance: what guessing scores; None where that is not known
    recovery_above_chance: (pruned − chance) ÷ (dense − chance)
    """

    task: str
    backend: str
    metric: str
    items: int
    dense: float
    pruned: float
    difference: Estimate
    recovery: Estimate
    pruned_estimate: Estimate
    floor: float | None = None
    error: str | None = None
    groups: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    chance: float | None = None
    recovery_above_chance: Estimate | None = None


@dataclass(frozen=True)
class SpeedResult:
    """Both models in one runtime, taking turns on one machine.

    phase: `prefill`, the whole prompt at once, or `decode`, one token after the other
    dense, pruned: median tokens per second, over the whole batch
    dense_seconds, pruned_seconds: median time to the first token (prefill), or per token (decode)
    pruned_estimate: `pruned` with its interval over turns and processes
    speedup: median over pairs of pruned ÷ dense tokens per second, likewise
    error: why there is no number; the numbers are NaN then
    """

    runtime: str
    phase: str
    batch: int
    prompt_tokens: int
    new_tokens: int
    dense: float
    pruned: float
    dense_seconds: float
    pruned_seconds: float
    pruned_estimate: Estimate
    speedup: Estimate
    error: str | None = None


@dataclass(frozen=True)
class FootprintResult:
    """What an artefact takes, beside what the dense model takes in the same form.

    Bytes of its files, and bytes resident once a process has loaded it, beyond what that process
    took before. None where it was not measured; `note` says why.
    """

    artefact: str
    file_bytes: int
    dense_file_bytes: int | None
    resident_bytes: int | None
    dense_resident_bytes: int | None
    note: str | None = None


@dataclass(frozen=True)
class ParityResult:
    """An artefact in its runtime against the model that it was written from.

    difference: the largest between log-probabilities of next tokens
    agreed: greedy tokens that are the same, of `compared`
    error: why it could not be compared
    """

    artefact: str
    difference: float
    tolerance: float
    agreed: int
    compared: int
    error: str | None = None

    @property
    def same(self) -> bool:
        return not self.error and self.agreed == self.compared and self.difference <= self.tolerance
