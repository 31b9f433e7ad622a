# SPDX-License-Identifier: Apache-2.0
"""A plan as a person reads it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prunec.compiler.model.layout import (
    dense_layout,
    kv_bytes_per_token,
    prunable_parameters,
    total_parameters,
)
from prunec.compiler.plan import Plan
from prunec.compiler.plan_builder import Subject
from prunec.compiler.recipe import Recipe
from prunec.compiler.target import describe_target


def render_plan(recipe: Recipe, subject: Subject, plan: Plan, console: Console) -> None:
    """The model, the target, and a row a step. Costs are estimates, and marked so."""
    facts = subject.facts
    dense = dense_layout(facts)
    prunable = prunable_parameters(facts, dense)
    total = total_parameters(facts, dense)
    console.print(
        f"{recipe.model.source}: {total:,} parameters, {prunable:,} of them prunable, "
        f"{facts.layers} layers, {facts.query_heads} query heads on {facts.kv_heads} KV heads, "
        f"FFN {facts.ffn}, {kv_bytes_per_token(facts, dense):,} KV bytes/token",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"target: {describe_target(recipe, facts)}, layout {recipe.target.layout}, "
        f"method {recipe.method.kind}",
        highlight=False,
        soft_wrap=True,
    )
    roomy = console.width >= 110
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("step", no_wrap=True)
    if roomy:
        table.add_column("why")
    table.add_column("fingerprint", no_wrap=True, style="dim")
    for heading in ("token-forwards", "memory ≈", "disk ≈"):
        table.add_column(heading, justify="right", no_wrap=True)
    for step in plan.steps:
        cost = step.cost
        table.add_row(
            step.name,
            *([Text(step.why)] if roomy else []),
            step.fingerprint[:12],
            f"{cost.token_forwards:,}" if cost.token_forwards else "",
            _bytes(cost.memory_bytes),
            _bytes(cost.disk_bytes),
        )
    forwards = sum(step.cost.token_forwards for step in plan.steps)
    disk = sum(step.cost.disk_bytes for step in plan.steps)
    memory = max(step.cost.memory_bytes for step in plan.steps)
    blanks = ["", ""] if roomy else [""]
    table.add_row("total", *blanks, f"{forwards:,}", _bytes(memory), _bytes(disk), style="bold")
    console.print(table)
    console.print(
        "Costs are estimates; memory is that of weights, activations and matrices, beyond what "
        "Python and PyTorch take themselves.",
        style="dim",
        soft_wrap=True,
    )


def _bytes(value: int) -> str:
    if not value:
        return ""
    amount = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
