# SPDX-License-Identifier: Apache-2.0
"""A plan against what its recipe allows, and a build against what the machine has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from prunec.compiler import available
from prunec.compiler.diagnostics import BuildError, RecipeProblemError
from prunec.compiler.model.placement import Placement
from prunec.compiler.placing import (
    Limits,
    TooLittleMemoryError,
    disk_bytes,
    fit,
    remedy,
)
from prunec.compiler.plan import Plan, Step
from prunec.compiler.recipe import Resources
from prunec.compiler.store import Store
from prunec.validators.units import size

#: Of the memory that is free, the share that a build may take where its recipe says nothing: some
#: is for the files that the system keeps in memory, and for what estimates miss.
_SHARE = 0.8


def kept_within(plan: Plan, resources: Resources) -> Plan:
    """The plan in the placement that keeps it to what its recipe allows, all in memory where that
    says nothing. RecipeProblemError where there is none."""
    limits = Limits(resources.memory, resources.gpu_memory, on_gpu=resources.plans_for_gpu)
    try:
        placed = plan.placed(fit(plan.steps, limits))
    except TooLittleMemoryError as error:
        key, excess = f"resources.{error.excess.kind}", error.excess
        raise RecipeProblemError(
            key,
            f"{key} is {size(excess.limit)}, and the step {error.step.name} takes at "
            f"least {size(excess.needed)}",
            hint=f"raise it, or {remedy(error.step)}",
        ) from None
    taken = disk_bytes(placed.steps)
    if resources.disk is not None and taken > resources.disk:
        raise RecipeProblemError(
            "resources.disk",
            f"resources.disk is {size(resources.disk)}, and the build takes {size(taken)}",
            hint="raise it; prunec plan says what each step takes",
        )
    return placed


def due(plan: Plan, store: Store, *, fresh: bool = False) -> list[Step]:
    """The steps whose results are not in the store; `fresh`: which is going to be forgotten."""
    return [s for s in plan.steps if fresh or store.entry(s.fingerprint).record() is None]


def limits_here(resources: Resources, gpu_memory: int | None = None) -> Limits:
    """What a build may take of this machine: what the recipe allows, and no more than there is.

    gpu_memory: bytes that are free on the GPU where the work is done on one, else None
    """
    memory, free = resources.memory, available.memory()
    if free is not None:
        free //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # workers on this machine
        memory = int(_SHARE * free) if memory is None else min(memory, free)
    on_gpu = gpu_memory is not None
    return Limits(memory, _least(resources.gpu_memory, gpu_memory), on_gpu=on_gpu)


def placement_here(steps: Sequence[Step], limits: Limits) -> Placement:
    """The fastest placement of these steps that keeps to the limits. BuildError where there is too
    little memory for any."""
    try:
        return fit(steps, limits)
    except TooLittleMemoryError as error:
        excess = error.excess
        of = "on the GPU" if excess.kind == "gpu_memory" else "of memory"
        raise BuildError(
            f"{error.step.name}: takes at least {size(excess.needed)} {of}, and there are "
            f"{size(excess.limit)} for it",
            hint=f"take a larger machine, or {remedy(error.step)}",
        ) from None


def check_disk(
    plan: Plan, placement: Placement, store: Store, output: Path, *, fresh: bool = False
) -> None:
    """BuildError where the file system of `output` has too little room for what the plan's steps
    still have to write: less is left to do of those that a killed build has begun, and what is
    going to be forgotten (`fresh`) makes room."""
    steps = due(plan.placed(placement), store, fresh=fresh)
    there = _bytes_in(store.root) if fresh else 0
    for step in () if fresh else steps:
        there += min(step.cost.disk_bytes, _bytes_in(store.entry(step.fingerprint).folder))
    needed, free = disk_bytes(steps) - there, available.disk(output)
    if needed > free:
        raise BuildError(
            f"the build writes {size(needed)} more, and {output} has {size(free)} left",
            hint="choose an --output on a larger disk",
        )


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _bytes_in(folder: Path) -> int:
    """Of the files in a folder; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
