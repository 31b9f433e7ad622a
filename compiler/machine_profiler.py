# SPDX-License-Identifier: Apache-2.0
"""Measures how fast this machine does each kind of work that a plan counts, in about a minute."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from prunec.compiler.machine import Machine
from prunec.compiler.passes.least_squares import cholesky, invert
from prunec.compiler.plan import Work
from prunec.compiler.profiler import machine as describe
from prunec.compiler.stopwatch import seconds

#: Of square float64 matrices: large enough for a full rate, small enough for a minute.
_SIZE = 3072
#: Tokens of a batch, and widths of a layer that it goes through.
_TOKENS, _NARROW, _WIDE = 2048, 2048, 8192
#: Vectors that a matrix is multiplied with, as pending pivots are.
_PENDING = 64
#: Bytes of the file that is written and read.
_FILE_BYTES = 2**30
_REPEATS = 3

#: Called with (done, of) while samples are taken.
Progress = Callable[[int, int], None]


@torch.no_grad()
def profile_machine(
    name: str,
    device: torch.device,
    folder: Path,
    on_progress: Progress = lambda done, of: None,
) -> Machine:
    """The rates of a device, and of the disk that `folder` lies on. OSError if that is full."""
    bench = _Bench(device)
    samples: dict[Work, Callable[[], float]] = {
        kind: partial(bench.products, getattr(torch, kind))
        for kind in (Work.BFLOAT16, Work.FLOAT16, Work.FLOAT32, Work.FLOAT64)
    }
    samples |= {Work.FACTOR: bench.inverse, Work.VECTOR: bench.vectors}
    total, done, rates = len(samples) * _REPEATS + 1, 0, dict[Work, float]()
    for kind, sample in samples.items():
        sample()  # warms up
        found = []
        for _ in range(_REPEATS):
            found.append(sample())
            done += 1
            on_progress(done, total)
        rates[kind] = statistics.median(found)
    rates[Work.WRITE], rates[Work.READ] = _disk(folder)
    on_progress(total, total)
    return Machine(name, describe(device), {kind: float(f"{rates[kind]:.3g}") for kind in Work})


class _Bench:
    """Work of each kind; methods return the rate of one sample."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def products(self, dtype: torch.dtype) -> float:
        """Operations a second of a batch that goes through a linear map."""
        hidden = self._random(_TOKENS, _NARROW).to(dtype)
        weight = self._random(_WIDE, _NARROW).to(dtype)
        took = seconds(self.device, lambda: torch.nn.functional.linear(hidden, weight))
        return 2 * _TOKENS * _NARROW * _WIDE / took

    def inverse(self) -> float:
        """Operations a second of a Cholesky factor, n³/3, and the inverse from it, 2n³/3."""
        root = self._random(_SIZE, _SIZE).double()
        gram = root @ root.T + _SIZE * torch.eye(_SIZE, dtype=torch.float64, device=self.device)
        return _SIZE**3 / seconds(self.device, lambda: invert(cholesky(gram)))

    def vectors(self) -> float:
        """Bytes a second of matrices, small enough for caches, that are multiplied with vectors."""
        pending = self._random(_PENDING, _WIDE).double()
        row, weights = self._random(_WIDE).double(), self._random(_PENDING).double()

        def many() -> None:
            for _ in range(_WIDE):
                row.addmv_(pending.T, weights, alpha=-1)

        return pending.nbytes * _WIDE / seconds(self.device, many)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device)


def _disk(folder: Path) -> tuple[float, float]:
    """Bytes a second of a large file, written until it is on the disk and read from there."""
    piece = os.urandom(2**24)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        began = time.perf_counter()
        for _ in range(_FILE_BYTES // len(piece)):
            file.write(piece)
        os.fsync(file.fileno())
        written = time.perf_counter() - began
        if hasattr(os, "posix_fadvise"):  # else it is read from memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        began = time.perf_counter()
        while file.read(len(piece)):
            pass
        return _FILE_BYTES / written, _FILE_BYTES / (time.perf_counter() - began)
