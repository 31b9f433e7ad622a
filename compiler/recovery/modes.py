# SPDX-License-Identifier: Apache-2.0
"""How a model is run while it is trained and judged: how much at once, in which precision, with
which parts random."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from prunec.compiler.recovery.objective import layers_of
from prunec.compiler.recovery.sizes import micro_windows


class Portions:
    """How many windows go through the model together: fewer once the memory did not hold them."""

    def __init__(self, length: int, vocab_size: int) -> None:
        self.size = micro_windows(length, vocab_size)

    def of(self, windows: list[int]) -> Iterator[list[int]]:
        """Windows in groups of that size."""
        for start in range(0, len(windows), self.size):
            yield windows[start : start + self.size]

    def fitting(self, run: Callable[[], float]) -> float:
        """What `run` returns, started anew with half the windows where memory runs out."""
        while True:
            try:
                return run()
            except torch.OutOfMemoryError:
                if self.size == 1:
                    raise
            self.size = math.ceil(self.size / 2)  # behind the handler, which holds the tensors
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def precision(device: torch.device, *, autocast: bool) -> AbstractContextManager[Any]:
    """bfloat16 products where asked for; weights and sums keep their dtype."""
    return torch.autocast(device.type, torch.bfloat16) if autocast else nullcontext()


@contextmanager
def training_mode(model: Any) -> Iterator[None]:
    """Dropout in adapters and checkpointed activations where they are set; the model's own dropout
    stays off, since what is trained has to agree with what the dense model says without it."""
    model.eval()
    switched = [module for name, module in model.named_modules() if "lora_dropout" in name]
    switched += layers_of(model)  # they alone: their parts have dropout
    for module in switched:
        module.training = True
    try:
        yield
    finally:
        model.eval()


@contextmanager
def seeded(device: torch.device, seed: tuple[int, int]) -> Iterator[None]:
    """Torch's random numbers from a seed, and afterwards as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(1_000_003 * seed[0] + seed[1])
        yield
