# SPDX-License-Identifier: Apache-2.0
"""When a training does what: batches, learning rates, looks at held-out text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Schedule:
    """How long and how fast is trained; the fields are those of `recover` in a recipe."""

    learning_rate: float
    warmup: float
    weight_decay: float
    batch_tokens: int
    epochs: int
    looks: int
    patience: int
    seed: int

    def batch_windows(self, length: int) -> int:
        return max(1, round(self.batch_tokens / length))

    def steps(self, windows: int, length: int) -> int:
        return self.epochs * math.ceil(windows / self.batch_windows(length))

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0: a linear rise, then a cosine to 0."""
        rise = round(self.warmup * steps)
        if step < rise:
            return self.learning_rate * (step + 1) / (rise + 1)
        return self.learning_rate * (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2

    def looks_after(self, steps: int) -> set[int]:
        """The numbers of finished steps after which the held-out text is looked at."""
        return {round(steps * look / self.looks) for look in range(1, self.looks + 1)} - {0}

    def batch(self, step: int, windows: int, length: int) -> list[int]:
        """The windows of a step: every epoch takes all of them, in an order of its own."""
        size = self.batch_windows(length)
        epoch, number = divmod(step, math.ceil(windows / size))
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
        order: list[int] = torch.randperm(windows, generator=generator).tolist()
        return order[number * size : (number + 1) * size]
