# SPDX-License-Identifier: Apache-2.0
"""A plan as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prunec.compiler.estimates import PROCESS_BYTES
from prunec.compiler.machine import Machine
from prunec.compiler.plan import Cost, Plan
from prunec.compiler.plan_builder import Subject
from prunec.compiler.plan_summary import summarise, total_cost
from prunec.compiler.recipe import Recipe
from prunec.validators.units import duration, size

#: From how many columns on there is room to say why a step is there.
_ROOMY = 110


def render_plan(
    recipe: Recipe,
    subject: Subject,
    plan: Plan,
    console: Console,
    machine: Machine | None = None,
) -> None:
    """The model, the target, and a row a step, with its time on a machine if there is one. Costs
    are estimates, and marked so."""
    summary = summarise(recipe, subject, plan, machine)
    for line in _head(summary):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(_table(recipe, plan, machine, with_reasons=console.width >= _ROOMY))
    console.print(
        f"Costs are estimates; memory is the process's peak, {size(PROCESS_BYTES)} of it "
        "for Python and PyTorch themselves."
        + (f" Times: on {machine.name}, as it was measured." if machine else ""),
        style="dim",
        soft_wrap=True,
    )


def _head(summary: Mapping[str, Any]) -> Iterator[str]:
    """The model, the target and the placement, a line each."""
    dense, target = summary["model"], summary["target"]
    layer, alike = dense["layers"][0], target["uniform"]
    yield (
        f"{dense['source']}: {dense['parameters']:,} parameters, "
        f"{dense['prunable_parameters']:,} of them prunable, {len(dense['layers'])} layers, "
        f"{layer['query_heads']} query heads on {layer['kv_heads']} KV heads, "
        f"FFN {layer['ffn']}, {dense['kv_bytes_per_token']:,} KV bytes/token"
    )
    yield f"target: {target['words']}, layout {target['layout']}, method {summary['method']}"
    sizes = ("weight_bytes", "kv_bytes_per_token")
    weights, cache = (f"{size(dense[name])} → {size(alike[name])}" for name in sizes)
    yield f"about: weights {weights}, KV cache {cache} a token"
    yield f"placement: {summary['placement']['words']}"


def _table(recipe: Recipe, plan: Plan, machine: Machine | None, *, with_reasons: bool) -> Table:
    on_gpu, scratch = recipe.resources.plans_for_gpu, any(s.cost.scratch_bytes for s in plan.steps)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("step", no_wrap=True)
    if with_reasons:
        table.add_column("why")
    table.add_column("fingerprint", no_wrap=True, style="dim")
    for heading in (
        "token-forwards",
        "memory ≈",
        *(["GPU ≈"] if on_gpu else []),
        "disk ≈",
        *(["scratch ≈"] if scratch else []),
        *(["time ≈"] if machine else []),
    ):
        table.add_column(heading, justify="right", no_wrap=True)

    def cells(cost: Cost, seconds: float) -> Iterator[str]:
        yield f"{cost.token_forwards:,}" if cost.token_forwards else ""
        yield _bytes(cost.host_bytes if on_gpu else cost.memory_bytes)
        if on_gpu:
            yield _bytes(cost.gpu_bytes)
        yield _bytes(cost.disk_bytes)
        if scratch:
            yield _bytes(cost.scratch_bytes)
        if machine:
            yield duration(seconds)

    times = [machine.seconds(step.cost) if machine else 0.0 for step in plan.steps]
    for step, taken in zip(plan.steps, times, strict=True):
        why = [Text(step.why)] if with_reasons else []
        table.add_row(step.name, *why, step.fingerprint[:12], *cells(step.cost, taken))
    total = total_cost([step.cost for step in plan.steps])
    blanks = ["", ""] if with_reasons else [""]
    table.add_row("total", *blanks, *cells(total, sum(times)), style="bold")
    return table


def _bytes(value: int) -> str:
    return size(value) if value else ""
