# SPDX-License-Identifier: Apache-2.0
"""What a search may spend: token-forwards, or minutes by the clock. It is never overdrawn."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

#: A clock's prediction is taken for this much too low: a machine may be busier later.
CAUTION = 1.25


@dataclass
class Allowance:
    """token_forwards, seconds: the limits, None where there is none; clock: in seconds.

    used_tokens, used_seconds: what has been spent, also by the search that this one resumes
    """

    token_forwards: int | None
    seconds: float | None = None
    used_tokens: int = 0
    used_seconds: float = 0.0
    clock: Callable[[], float] = time.monotonic
    _since: float = field(init=False)
    _earlier: float = field(init=False)

    def __post_init__(self) -> None:
        self._since = self.clock()
        self._earlier = self.used_seconds

    def spend(self, token_forwards: int) -> None:
        self.used_tokens += token_forwards
        self.used_seconds = self._earlier + self.clock() - self._since

    def affords(self, token_forwards: int) -> bool:
        """Whether so much more stays within the limits; seconds at the pace so far."""
        if self.token_forwards is not None:
            return self.used_tokens + token_forwards <= self.token_forwards
        assert self.seconds is not None
        pace = self.used_seconds / max(self.used_tokens, 1)
        return self.used_seconds + CAUTION * pace * token_forwards <= self.seconds

    @property
    def left(self) -> int:
        """Token-forwards that are still affordable."""
        if self.token_forwards is not None:
            return self.token_forwards - self.used_tokens
        assert self.seconds is not None
        pace = self.used_seconds / max(self.used_tokens, 1)
        return int((self.seconds - self.used_seconds) / (CAUTION * pace)) if pace else 0
