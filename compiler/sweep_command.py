# SPDX-License-Identifier: Apache-2.0
"""`prunec sweep`: the grid of settings, every point of it read and planned before one is built."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from prunec.compiler.diagnostics import Diagnostic, UserError
from prunec.compiler.plan import digest
from prunec.compiler.plan_builder import Subject
from prunec.compiler.planned import Planned, plan_recipe
from prunec.compiler.recipe import ModelSpec, Recipe, TyrMethod

_OPENING, _CLOSING, _QUOTES = "[{", "]}", "\"'"
_LONGEST = 100  # characters of a folder's name

T = TypeVar("T")


@dataclass(frozen=True)
class Point:
    """One build of the grid: what varies, as `key=value`, and all overrides of its recipe."""

    varied: tuple[str, ...]
    overrides: tuple[str, ...]
    folder: str

    @property
    def label(self) -> str:
        return ", ".join(self.varied)

    @property
    def settings(self) -> dict[str, str]:
        """What varies, by key."""
        return {key: value for key, _, value in (one.partition("=") for one in self.varied)}


@dataclass(frozen=True)
class PlannedPoint:
    point: Point
    planned: Planned


def grid(settings: Sequence[str]) -> list[Point]:
    """All combinations, the last setting changing fastest. UserError if nothing varies.

    settings: `key=value` or `key=value,value,…`; in a list, a mapping or quotes, as YAML has them,
    commas do not separate
    """
    choices = [_choices(setting) for setting in settings]
    varying = {number for number, values in enumerate(choices) if len(values) > 1}
    if not varying:
        raise UserError(
            Diagnostic(
                "a sweep needs a --set with several values",
                hint="for example --set target.sparsity=0.25,0.375,0.5",
            )
        )
    combined = list(itertools.product(*choices))
    varied = [tuple(o for number, o in enumerate(each) if number in varying) for each in combined]
    folders = _folders(varied)
    return [Point(*each) for each in zip(varied, combined, folders, strict=True)]


def plan_points(
    path: Path,
    settings: Sequence[str],
    find: Callable[[ModelSpec], Subject],
    say: Callable[[str], None],
    *,
    share_supernets: bool = True,
) -> list[PlannedPoint]:
    """Every point of the grid, planned; those that ask for the same build are made one, and told.

    UserError with the mistakes of all of them, BuildError where a model cannot be had. `find` gives
    the model of a recipe. `share_supernets`: see `shared_centre`.
    """
    found: dict[str, Subject] = {}

    def find_once(model: ModelSpec) -> Subject:
        key = model.model_dump_json()
        if key not in found:
            found[key] = find(model)
        return found[key]

    planned: list[PlannedPoint] = []

    def plan(point: Point) -> None:
        made = plan_recipe(path, point.overrides, find_once)
        same = next((p for p in planned if p.planned.recipe == made.recipe), None)
        if same is not None:
            say(f"{point.label} asks for the same build as {same.point.label}: made once")
        else:
            planned.append(PlannedPoint(point, made))

    for_all_points(grid(settings), plan, lambda point: point)
    if len(planned) == 1:
        raise UserError(Diagnostic("all points of the sweep ask for the same build"))
    centre = shared_centre([each.planned.recipe for each in planned]) if share_supernets else None
    if centre is None:
        return planned
    say(
        f"points share one supernet, around a sparsity of {centre:g} "
        "(--own-supernets makes one for each)"
    )

    def around_centre(each: PlannedPoint) -> PlannedPoint:
        if not _has_a_supernet_to_share(each.planned.recipe):
            return each
        overrides = (*each.point.overrides, f"method.centre={centre:g}")
        point = replace(each.point, overrides=overrides)
        return PlannedPoint(point, plan_recipe(path, overrides, find_once))

    return [around_centre(each) for each in planned]


def shared_centre(recipes: Sequence[Recipe]) -> float | None:
    """The sparsity in the middle of those that are swept, for one supernet to be built around; None
    where there are not several, or none of them searches a supernet of its own."""
    wanted = {recipe.target.sparsity for recipe in recipes if _has_a_supernet_to_share(recipe)} - {
        None
    }
    if len(wanted) < 2:
        return None
    return statistics.median(sparsity for sparsity in wanted if sparsity is not None)


def _has_a_supernet_to_share(recipe: Recipe) -> bool:
    """Whether a build is Týr's, for a sparsity, and says nothing of its supernet's centre."""
    method = recipe.method
    searches = isinstance(method, TyrMethod) and not method.faithful and method.centre is None
    return searches and recipe.target.sparsity is not None


def for_all_points(
    items: Sequence[T], action: Callable[[T], None], point_of: Callable[[T], Point]
) -> None:
    """Do something for every point. UserError with all mistakes, each told once."""
    mistakes: dict[Diagnostic, list[Point]] = {}
    for item in items:
        try:
            action(item)
        except UserError as error:
            for diagnostic in error.diagnostics:
                mistakes.setdefault(diagnostic, []).append(point_of(item))
    if mistakes:
        raise UserError(*(_told(one, of, len(items)) for one, of in mistakes.items()))


def _told(mistake: Diagnostic, points: Sequence[Point], of: int) -> Diagnostic:
    """The mistake, and at which points it was made where that is not all, or plain to see."""
    label = points[0].label
    if len(points) == of or (mistake.where or "") == f"--set {label}":
        return mistake
    more = f" and {len(points) - 1} more" if len(points) > 1 else ""
    return Diagnostic(f"{mistake.message} (at {label}{more})", mistake.where, mistake.hint)


def _folders(varied: Sequence[tuple[str, ...]]) -> list[str]:
    """Names of folders that say what varies; where that does not tell two apart, a digest does."""
    names = []
    for settings in varied:
        kept = (c if c.isalnum() or c in "=._-" else "-" for c in "_".join(settings))
        names.append("".join(kept)[:_LONGEST].lstrip("."))
    # Some file systems take upper and lower case for the same.
    taken = Counter(name.casefold() for name in names)
    return [
        name if taken[name.casefold()] == 1 else f"{name}-{digest(settings)[:8]}"
        for name, settings in zip(names, varied, strict=True)
    ]


def _choices(setting: str) -> list[str]:
    key, equals, text = setting.partition("=")
    if not equals:
        return [setting]  # the recipe's reader says what is wrong with it
    return [f"{key.strip()}={value.strip()}" for value in _split(text)]


def _split(text: str) -> list[str]:
    """At the commas between values. A value is a list or mapping, a quoted text or a plain one.

    Quotes and brackets mean something only where YAML would have it so: at a value's beginning, and
    inside lists and mappings at the beginning of theirs.
    """
    parts, depth, quote, closed, fresh, escaped = [""], 0, "", "", True, False
    for character in text:
        reopens, closed = character == closed == "'", ""  # 'it''s' is one text
        if quote:
            closed = character if character == quote and not escaped else ""
            escaped = quote == '"' and character == "\\" and not escaped
            quote = "" if closed else quote
        elif character == "," and not depth:
            parts.append("")
            fresh = True
            continue
        elif character in _QUOTES and (fresh or reopens):
            quote = character
        elif character in _OPENING and (fresh or depth):
            depth += 1
        elif character in _CLOSING and depth:
            depth -= 1
        # After these a value may begin; after a space nothing has changed.
        if not character.isspace():
            fresh = bool(depth) and not quote and character in f"{_OPENING},:"
        parts[-1] += character
    return parts
