# SPDX-License-Identifier: Apache-2.0
"""Building the points of a sweep one after the other, from one store of results."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from prunec.compiler import build_command
from prunec.compiler.diagnostics import BuildError, UserError
from prunec.compiler.driver import locked
from prunec.compiler.output_folder import STORE, OutputFolder, check_sweep_place
from prunec.compiler.progress import Narrator
from prunec.compiler.store import Store
from prunec.compiler.sweep_command import PlannedPoint, for_all_points
from prunec.validators.sweep import SweepPoint, SweepResult
from prunec.validators.sweep_report import write_sweep


def build_points(
    points: Sequence[PlannedPoint],
    recipe: str,
    command: str,
    output: Path,
    narrator: Narrator,
    *,
    fresh: bool = False,
) -> SweepResult:
    """Build every point in a folder of its own and write what they come to.

    A point that cannot be built is told, and the others go on. `recipe` is as it was given. One
    sweep at a time works on an output folder. BuildError for what concerns all points, UserError
    before any is built for measurements that cannot be made here.
    """
    store = Store(output / STORE)
    try:
        check_sweep_place(output)
        output.mkdir(parents=True, exist_ok=True)
        with locked(output):
            _check_places(points, output, store)
            _check_measurable(points, store, fresh)
            if fresh:
                store.clear()
            store.root.mkdir(exist_ok=True)
            done = []
            for number, planned in enumerate(points, start=1):
                narrator.say(f"({number}/{len(points)}) {planned.point.label}")
                done.append(_build(planned, recipe, output, store, narrator))
            result = SweepResult(points[0].planned.path.stem, command, tuple(done))
            write_sweep(result, output)
    except OSError as error:
        raise BuildError(f"{error.strerror or error}: {error.filename or output}") from error
    return result


def _build(
    planned: PlannedPoint, recipe: str, output: Path, store: Store, narrator: Narrator
) -> SweepPoint:
    point = planned.point
    settings = [part for override in point.overrides for part in ("--set", override)]
    command = shlex.join(["prunec", "build", recipe, *settings])
    name, folder = planned.planned.path.stem, output / point.folder
    try:
        report = build_command.run(planned.planned, name, command, folder, narrator, store=store)
    except BuildError as error:
        narrator.say(f"{point.label}: {error.message}")
        return SweepPoint(point.label, point.folder, None, error.message, point.settings)
    return SweepPoint(point.label, point.folder, report, settings=point.settings)


def _check_places(points: Sequence[PlannedPoint], output: Path, store: Store) -> None:
    """Every point's folder is looked at before one is built."""
    for planned in points:
        exports = [export.kind for export in planned.planned.recipe.export]
        OutputFolder(output / planned.point.folder, store.root).check(exports, exports)


def _check_measurable(points: Sequence[PlannedPoint], store: Store, fresh: bool) -> None:
    """What points ask for alike is looked at once."""
    found: dict[str, UserError | None] = {}

    def look(planned: PlannedPoint) -> None:
        made = planned.planned
        asked = repr((made.recipe.model, made.recipe.validation))
        if asked not in found:
            try:
                build_command.check(made, store, fresh=fresh)
                found[asked] = None
            except UserError as error:
                found[asked] = error
        if (mistake := found[asked]) is not None:
            raise mistake

    for_all_points(points, look, lambda planned: planned.point)
