# SPDX-License-Identifier: Apache-2.0
"""From a recipe's file and overrides to a plan. Reads no weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prunec.compiler.diagnostics import Diagnostic, RecipeProblemError, UserError
from prunec.compiler.plan import Plan
from prunec.compiler.plan_builder import Subject
from prunec.compiler.planner import make_plan
from prunec.compiler.recipe import ModelSpec, Recipe
from prunec.compiler.recipe_file import load_recipe, place_of
from prunec.compiler.resources import kept_within


@dataclass(frozen=True)
class Planned:
    """A recipe as it is to be run, the model that it names, and the steps that this takes."""

    path: Path
    overrides: tuple[str, ...]
    recipe: Recipe
    subject: Subject
    plan: Plan

    @property
    def recipe_text(self) -> str:
        """The recipe as it was written, with the overrides that were given as comments."""
        given = "".join(f"# --set {override}\n" for override in self.overrides)
        return given + self.path.read_text(encoding="utf-8")


@contextmanager
def placed(path: Path, overrides: Sequence[str] = ()) -> Iterator[None]:
    """Gives mistakes that planning finds in a recipe their place in it. `path` may be a model's."""
    try:
        yield
    except RecipeProblemError as error:
        where = place_of(path, overrides, error.key) if path.is_file() else None
        raise UserError(Diagnostic(error.message, where, error.hint)) from None


def plan_recipe(
    path: Path,
    overrides: Sequence[str],
    find: Callable[[ModelSpec], Subject],
    plan: Callable[[Recipe, Subject, Path], Plan] = make_plan,
) -> Planned:
    """Read a recipe, find its model and plan. UserError with the place of every mistake.

    `find` gives the model, and may raise BuildError; `plan` is given the recipe, the model and the
    recipe's folder.
    """
    recipe = load_recipe(path, overrides)
    with placed(path, overrides):
        subject = find(recipe.model)
        made = kept_within(plan(recipe, subject, path.parent), recipe.resources)
    return Planned(path, tuple(overrides), recipe, subject, made)
