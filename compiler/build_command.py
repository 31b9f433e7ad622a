# SPDX-License-Identifier: Apache-2.0
"""Carrying out what was planned: the part that `build`, `validate` and `sweep` have in common."""

from __future__ import annotations

from pathlib import Path

from prunec.compiler import driver
from prunec.compiler.planned import Planned, placed
from prunec.compiler.preflight import check_measurable
from prunec.compiler.progress import Narrator
from prunec.compiler.steps.context import Context
from prunec.compiler.store import Store
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
) -> Report:
    """Make what is missing and write it to `output`. Raises BuildError; `check` comes before it.

    name: the report's; command: what makes the same again; store: where results are kept, in
    `output` if nothing else is said; fresh: forget what it holds. The model must have a checkpoint.
    """
    assert planned.subject.folder is not None  # subject_for_build has found it
    context = Context(
        recipe=planned.recipe,
        recipe_text=planned.recipe_text,
        base=planned.path.parent,
        folder=planned.subject.folder,
        output=output,
        subject=planned.subject,
        plan=planned.plan,
        store=store or Store(output / ".store"),
    )
    return driver.build(context, name, command, narrator, fresh=fresh)
