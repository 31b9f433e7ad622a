# SPDX-License-Identifier: Apache-2.0
"""Which placement a plan's steps fit with: the fastest of a ladder of ever smaller ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from prunec.compiler.model.placement import ROOMY, Placement
from prunec.compiler.plan import Cost, Step

_MIB = 2**20

_IN_FILES = replace(
    ROOMY,
    vocabulary_stays=False,
    states_in_file=True,
    cut_bytes=512 * _MIB,
    state_bytes=256 * _MIB,
)
_SMALL = replace(_IN_FILES, matrices_in_file=True, cut_bytes=256 * _MIB, state_bytes=128 * _MIB)
_SMALLEST = replace(_SMALL, cut_bytes=64 * _MIB, state_bytes=32 * _MIB)

#: From all of it in memory down to one window at a time.
LADDER = (
    ROOMY,
    replace(ROOMY, states_on_host=True),  # for work on a GPU
    replace(_IN_FILES, states_in_file=False, states_on_host=True),
    _IN_FILES,
    _SMALL,
    replace(_SMALL, batch_tokens=4096),
    *(replace(_SMALLEST, batch_tokens=tokens) for tokens in (2048, 1024, 1)),
)


@dataclass(frozen=True)
class Limits:
    """Bytes that a build may take, None where there is no limit.

    memory: of the process, on the side of the host; gpu_memory: of what lies on the GPU
    on_gpu: whether the work is done on one
    """

    memory: int | None
    gpu_memory: int | None = None
    on_gpu: bool = False

    def hold(self, cost: Cost) -> bool:
        return not self.excess(cost)

    def excess(self, cost: Cost) -> Excess | None:
        """What a step takes too much of."""
        host = cost.host_bytes if self.on_gpu else cost.memory_bytes
        if self.memory is not None and host > self.memory:
            return Excess("memory", host, self.memory)
        if self.on_gpu and self.gpu_memory is not None and cost.gpu_bytes > self.gpu_memory:
            return Excess("gpu_memory", cost.gpu_bytes, self.gpu_memory)
        return None


@dataclass(frozen=True)
class Excess:
    """Bytes that are needed of one kind of memory, and those that there are."""

    kind: str
    needed: int
    limit: int


class TooLittleMemoryError(Exception):
    """A step has no placement that fits: `excess` is that of the smallest one."""

    def __init__(self, step: Step, excess: Excess) -> None:
        super().__init__(step.name)
        self.step = step
        self.excess = excess


def fit(steps: Sequence[Step], limits: Limits) -> Placement:
    """The first placement of the ladder with which every step keeps to the limits.

    TooLittleMemoryError for the step that exceeds them most with the last one, where there is none.
    """
    for placement in LADDER:
        if all(limits.hold(step.estimate(placement)) for step in steps):
            return placement
    found = [(step, limits.excess(step.estimate(LADDER[-1]))) for step in steps]
    over = [(step, excess) for step, excess in found if excess]
    step, excess = max(over, key=lambda pair: pair[1].needed - pair[1].limit)
    raise TooLittleMemoryError(step, excess)


def remedy(step: Step) -> str:
    """What in a recipe would make a step take less memory, after "raise it, or"."""
    match step.kind:
        case "teacher" | "search" | "finalists" | "tune" | "published-search" | "distributions":
            return "lower calibration.sequence_length or search.tokens"
        case "statistics":
            return "lower calibration.tokens, or use metrics that need no gradients"
        case "generate":
            return "take another calibration.source than the model itself"
        case "recover":
            return "lower recover.sequence_length, or use recover: {kind: blockwise}"
        case "measure":
            return "lower validate.perplexity.sequence_length"
        case "parity" | "tasks" | "speed":
            return f"remove validate.{step.kind}"
        case "footprint":
            return "remove validate.size"
        case "export" | "dense-export":
            return "write another format"
        case _:  # matrices of the width of a layer, which nothing but the model decides
            return "use a method that solves nothing, such as {kind: importance, refit: false}"


def disk_bytes(steps: Sequence[Step]) -> int:
    """What steps keep, and the largest of their scratch files."""
    kept = sum(step.cost.disk_bytes for step in steps)
    return kept + max((step.cost.scratch_bytes for step in steps), default=0)


def in_words(placement: Placement) -> str:
    """A placement in a sentence's words."""
    filed = [
        name
        for name, there in (
            ("hidden states", placement.states_in_file),
            ("matrices", placement.matrices_in_file),
        )
        if there
    ]
    where = f"{' and '.join(filed)} in files" if filed else "everything in memory"
    if placement.states_on_host and not filed:
        where = "hidden states in the host's memory"
        where += ", small caches" if placement.cut_bytes < ROOMY.cut_bytes else ""
    few = placement.batch_tokens == 1
    batches = "one window at a time" if few else f"batches of {placement.batch_tokens:,} tokens"
    return f"{where}, {batches}"
