# SPDX-License-Identifier: Apache-2.0
"""What do the order, every level's error and one level's weights cost, in inversions of the Gram?

    python benchmarks/elimination.py --size 14336 --outputs 4096

Times, side by side and again in every repeat: one `torch.linalg.inv` of the Gram matrix; the order
in which its inputs go, one at a time; the error at every size; the weights at half of it. Prints
medians with the range over the repeats as a Markdown table, and the peak memory of each side.

The published way inverts and refits anew for each of its nine levels. One level (the inverse, a
choice from its diagonal, one refit; none of its rounds of updates) is timed once and multiplied,
or all of them are run with `--published`.

The Gram is that of correlated, heavy-tailed inputs whose spectrum decays: 512 factors of variance
1, 1/2, 1/3, … under loadings of log-normal scale, with noise of its own for each input.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from prunec.compiler.passes.eliminate import channel_order
from prunec.compiler.passes.least_squares import (
    GramStatistics,
    NestedSolution,
    NormalEquations,
    normal_equations,
)

LEVELS = 9
FACTORS = 512
T = TypeVar("T")


@dataclass(frozen=True)
class Repeat:
    """Seconds of one round through everything, and peak memory in bytes."""

    inverse: float
    order: float
    curve: float
    weights: float
    inverse_peak: int
    peak: int

    @property
    def ours(self) -> float:
        return self.order + self.curve + self.weights


def make_problem(
    size: int, outputs: int, dtype: torch.dtype, device: torch.device, seed: int
) -> NormalEquations:
    """Normal equations of `size` inputs and `outputs` outputs, damped as by default."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=torch.float64)

    scale = normal(size).exp()
    factors = min(FACTORS, size)
    variance = 1 / torch.arange(1, factors + 1, device=device, dtype=torch.float64)
    loadings = normal(size, factors) * scale[:, None] * variance.sqrt()
    gram = loadings @ loadings.T
    gram.diagonal().add_(0.1 * scale.square() * normal(size).exp())
    weight = normal(size, outputs) / size**0.5
    problem = normal_equations(GramStatistics(gram, None), weight, damping=0.01, dense_target=0.0)
    return NormalEquations.of(problem.gram[:].to(dtype), problem.target.to(dtype))


def timed(device: torch.device, action: Callable[[], T]) -> tuple[float, T]:
    """Seconds until the device has finished, and the result."""
    _wait(device)
    began = time.perf_counter()
    result = action()
    _wait(device)
    return time.perf_counter() - began, result


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the high-water mark


def peak(device: torch.device) -> int:
    """Bytes at most alive since the reset: on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def published_level(problem: NormalEquations, inputs_left: int) -> Tensor:
    """One level on its own: an inverse, the cheapest inputs by it, a refit of the others."""
    inverse = torch.linalg.inv(problem.gram)
    weight = inverse @ problem.target
    cost = weight.square().sum(dim=1) / inverse.diagonal()
    del inverse, weight
    kept = cost.topk(inputs_left).indices
    factor = torch.linalg.cholesky(problem.gram[:][kept][:, kept])
    return torch.cholesky_solve(problem.target[kept], factor)


def published_way(problem: NormalEquations, device: torch.device, all_levels: bool) -> float:
    """Seconds for nine levels from all to none: run, or one of them times nine."""
    size = len(problem.gram)
    sizes = [size * level // (LEVELS - 1) for level in range(LEVELS)] if all_levels else [size // 2]
    seconds = 0.0
    for inputs_left in sizes:
        seconds += timed(device, partial(published_level, problem, inputs_left))[0]
    return seconds * LEVELS / len(sizes)


def run_once(problem: NormalEquations, device: torch.device) -> Repeat:
    size = len(problem.gram)
    reset_peak(device)
    inverse, _ = timed(device, lambda: torch.linalg.inv(problem.gram).diagonal().sum())
    inverse_peak = peak(device)

    reset_peak(device)
    order_seconds, order = timed(device, lambda: channel_order(problem))

    def curve() -> NestedSolution:
        solution = NestedSolution.solve(problem, order)
        solution.excess_errors()
        return solution

    curve_seconds, solution = timed(device, curve)
    weights_seconds, (kept, weight) = timed(device, lambda: solution.weight(size // 2))
    highest = peak(device)
    misfit = problem.gram[:][kept][:, kept] @ weight - problem.target[kept]
    residual = float(misfit.norm() / problem.target[kept].norm())
    print(f"relative residual of the weights at {size // 2}: {residual:.1e}", file=sys.stderr)
    return Repeat(inverse, order_seconds, curve_seconds, weights_seconds, inverse_peak, highest)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median, and the range where there is more than one value."""
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def table(repeats: Sequence[Repeat], published: float, matrix_bytes: int) -> str:
    rows = {
        "one `torch.linalg.inv`": [r.inverse for r in repeats],
        "order": [r.order for r in repeats],
        "error at every size": [r.curve for r in repeats],
        "weights at half the size": [r.weights for r in repeats],
        "the three together": [r.ours for r in repeats],
    }
    lines = ["| | seconds | in inversions |", "|---|---|---|"]
    for name, seconds in rows.items():
        ratios = [s / r.inverse for s, r in zip(seconds, repeats, strict=True)]
        lines.append(f"| {name} | {spread(seconds)} | {spread(ratios, 2)} |")
    inversions = published / statistics.median(r.inverse for r in repeats)
    lines.append(f"| nine levels, published way | {published:.1f} | {inversions:.2f} |")
    for name, used in (
        ("peak memory of one inversion", max(r.inverse_peak for r in repeats)),
        ("peak memory of the three", max(r.peak for r in repeats)),
    ):
        size = f"{used / 2**30:.1f} GiB, {used / matrix_bytes:.1f} Gram matrices"
        lines.append(f"| {name} | {size} | |")
    return "\n".join(lines)


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0].partition(":")[2].strip() if names else processor
    return f"{processor}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=14336, help="inputs: width of the MLP")
    parser.add_argument("--outputs", type=int, default=4096, help="hidden size of the model")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--dtype", choices=["float64", "float32"], default="float64")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--published", action="store_true", help="run all of its nine levels")
    arguments = parser.parse_args()

    name = arguments.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device, dtype = torch.device(name), getattr(torch, arguments.dtype)
    problem = make_problem(arguments.size, arguments.outputs, dtype, device, arguments.seed)
    # The first call of a kernel loads it.
    run_once(make_problem(256, 64, dtype, device, 0), device)
    repeats: list[Repeat] = []
    for number in range(1, arguments.repeats + 1):
        repeats.append(run_once(problem, device))
        last, load = repeats[-1], os.getloadavg()[0]
        print(
            f"[{number}/{arguments.repeats}] inverse {last.inverse:.1f} s, ours {last.ours:.1f} s: "
            f"{last.ours / last.inverse:.2f} inversions (load {load:.1f})",
            file=sys.stderr,
            flush=True,
        )
    published = published_way(problem, device, arguments.published)
    print(
        f"Gram of {arguments.size:,} inputs, {arguments.outputs:,} outputs, {arguments.dtype}, "
        f"{arguments.repeats} interleaved repeats: median (range). {hardware(device)}.\n"
    )
    print(table(repeats, published, problem.gram[:].nbytes))


if __name__ == "__main__":
    main()
