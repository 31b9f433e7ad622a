# SPDX-License-Identifier: Apache-2.0
"""Carrying out what was planned: the part that `build`, `validate` and `sweep` have in common."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path

import torch

from prunec.compiler import driver
from prunec.compiler.allocator import give_back_at_once
from prunec.compiler.diagnostics import BuildError
from prunec.compiler.model.placement import ROOMY, Placement
from prunec.compiler.output_folder import SCRATCH
from prunec.compiler.passes.workers import ALONE, Workers
from prunec.compiler.placing import Limits
from prunec.compiler.plan import Plan
from prunec.compiler.planned import Planned, placed
from prunec.compiler.preflight import check_measurable
from prunec.compiler.progress import Narrator
from prunec.compiler.recipe import Resources
from prunec.compiler.resources import check_disk, due, limits_here, placement_here
from prunec.compiler.steps.context import Context
from prunec.compiler.store import Store
from prunec.compiler.surroundings import device_kind
from prunec.validators.results import Report


def check(planned: Planned, store: Store, *, fresh: bool = False) -> None:
    """UserError for a measurement that cannot be made here, before hours go into what it is of.

    fresh: what the store holds is going to be forgotten
    """
    with placed(planned.path, planned.overrides):
        check_measurable(planned.recipe, planned.plan, None if fresh else store)


def run(
    planned: Planned,
    name: str,
    command: str,
    output: Path,
    narrator: Narrator,
    *,
    store: Store | None = None,
    fresh: bool = False,
    workers: Workers = ALONE,
) -> Report:
    """Make what is missing and write it to `output`. Raises BuildError; `check` comes before it.

    name: the report's; command: what makes the same again; store: where results are kept, in
    `output` if nothing else is said; fresh: forget what it holds; workers: who helps. The model
    must have a checkpoint.
    """
    store, device = store or Store(output / ".store"), device_of(planned.recipe.resources)
    # Of several GPUs each worker has its own.
    gpu_memory = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    limits = limits_here(planned.recipe.resources, gpu_memory)
    placement = _placement_of_all(planned.plan, store, limits, fresh=fresh)
    check_disk(planned.plan, placement, store, output, fresh=fresh)
    context = _context(planned, output, store, device, placement, workers, limits)
    return driver.build(context, name, command, narrator, fresh=fresh)


def _placement_of_all(plan: Plan, store: Store, limits: Limits, *, fresh: bool) -> Placement:
    """The placement of what is missing. With smaller batches than the plan's the results of larger
    ones are of no use, so that more is missing."""
    batch = plan.placement.batch_tokens
    while True:
        found = placement_here(due(plan, store, fresh=fresh), limits)
        if found.batch_tokens >= batch:
            return replace(found, batch_tokens=batch)
        batch, plan = found.batch_tokens, plan.placed(found)


def follow(planned: Planned, output: Path, workers: Workers) -> None:
    """Help the first worker with the same. BuildError, and WorkerLostError if that one is gone."""
    store, device = Store(output / ".store"), device_of(planned.recipe.resources)
    driver.follow(_context(planned, output, store, device, Placement(), workers))


def _context(
    planned: Planned,
    output: Path,
    store: Store,
    device: torch.device,
    placement: Placement,
    workers: Workers,
    limits: Limits | None = None,
) -> Context:
    assert planned.subject.folder is not None  # subject_for_build has found it
    if planned.recipe.resources.threads != "auto":
        torch.set_num_threads(planned.recipe.resources.threads)
    # The first worker's for all, so that a window is run beside the same others whoever runs it.
    _, said = workers.tell({}, asdict(placement), 0)
    placement = Placement(**said)
    if planned.recipe.resources.memory is not None or placement != ROOMY:
        give_back_at_once()
    return Context(
        recipe=planned.recipe,
        recipe_text=planned.recipe_text,
        base=planned.path.parent,
        folder=planned.subject.folder,
        output=output,
        subject=planned.subject,
        plan=planned.plan.placed(placement),
        store=store,
        device=device,
        placement=replace(placement, scratch=output / SCRATCH),
        workers=workers,
        limits=limits,
    )


def device_of(resources: Resources) -> torch.device:
    """Where the work is done: of several GPUs, each worker of a machine has its own. BuildError for
    a GPU that is not there."""
    if resources.device == "cuda" and not torch.cuda.is_available():
        raise BuildError(
            "resources.device is cuda, and PyTorch finds no GPU",
            hint="use auto or cpu, or install a PyTorch that is built for the GPU's driver",
        )
    if resources.device == "cpu" or not torch.cuda.is_available():
        if (
            there := device_kind(resources.device)
        ) != "cpu":  # what is made here would pass for its
            raise BuildError(
                f"this machine has a {there}, and PyTorch cannot use it",
                hint="install a PyTorch that is built for its driver, or set resources.device: cpu",
            )
        return torch.device("cpu")
    number = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    torch.cuda.set_device(number)
    return torch.device("cuda", number)
