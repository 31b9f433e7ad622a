# SPDX-License-Identifier: Apache-2.0
"""What a sweep would do and cost: the grid, and which steps its builds share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prunec.compiler.plan import Step
from prunec.compiler.sweep_command import PlannedPoint


@dataclass(frozen=True)
class SharedStep:
    """A step of several points that has the same fingerprint in all of them: it is made once."""

    step: Step
    points: int


@dataclass(frozen=True)
class SweepPlan:
    """The points in the order in which they are built."""

    points: tuple[PlannedPoint, ...]

    @property
    def shared(self) -> list[SharedStep]:
        """Steps that more than one point needs. Exports are written into each point's folder."""
        steps = [step for point in self.points for step in point.planned.plan.steps]
        needed: dict[str, list[Step]] = {}
        for step in steps:
            if step.kind != "export":
                needed.setdefault(step.fingerprint, []).append(step)
        return [SharedStep(same[0], len(same)) for same in needed.values() if len(same) > 1]

    def forwards(self) -> list[tuple[int, int]]:
        """Of every point: its token-forwards alone, and what is left of them after the points
        before it."""
        made: set[str] = set()
        found = []
        for point in self.points:
            steps = point.planned.plan.steps
            alone = sum(step.cost.token_forwards for step in steps)
            new = [step for step in steps if step.fingerprint not in made]
            made |= {step.fingerprint for step in steps}
            found.append((alone, sum(step.cost.token_forwards for step in new)))
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as `prunec sweep --plan --json` prints it."""
        forwards = self.forwards()
        return {
            "points": [
                {
                    "label": point.point.label,
                    "settings": point.point.settings,
                    "folder": point.point.folder,
                    "fingerprint": point.planned.plan.fingerprint,
                    "token_forwards": alone,
                    "new_token_forwards": new,
                }
                for point, (alone, new) in zip(self.points, forwards, strict=True)
            ],
            "shared": [
                {
                    "name": shared.step.name,
                    "fingerprint": shared.step.fingerprint,
                    "points": shared.points,
                    "token_forwards": shared.step.cost.token_forwards,
                }
                for shared in self.shared
            ],
            "token_forwards": sum(new for _, new in forwards),
        }


def render_sweep_plan(plan: SweepPlan, console: Console) -> None:
    """A row a point, then a row a shared step. Costs are estimates, and marked so."""
    forwards = plan.forwards()
    table = _table("point", "folder", "token-forwards alone ≈", "beyond points above ≈")
    for point, (alone, new) in zip(plan.points, forwards, strict=True):
        names = (Text(point.point.label), Text(point.point.folder))
        table.add_row(*names, f"{alone:,}", f"{new:,}")
    total = [f"{sum(each):,}" for each in zip(*forwards, strict=True)]
    table.add_row("total", "", *total, style="bold")
    console.print(table)
    console.print()
    if not plan.shared:
        console.print("No two points share a step.")
        return
    shared = _table("step that is made once", "why", "for points", "token-forwards ≈")
    for each in plan.shared:
        cost = each.step.cost.token_forwards
        why = Text(each.step.why)
        shared.add_row(each.step.name, why, str(each.points), f"{cost:,}" if cost else "")
    console.print(shared)


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place < 2 else "right", overflow="fold")
    return table
