# SPDX-License-Identifier: Apache-2.0
"""`prunec verify`: check every hash of a sweep, a build or an artefact, and open every file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from prunec.compiler.diagnostics import Diagnostic, UserError
from prunec.compiler.verify_artefact import Reading, check_artefact, check_hub_hashes
from prunec.exporters import EXPORTERS
from prunec.validators.artefact import inspect
from prunec.validators.errors import ValidationError
from prunec.validators.headers import read_json_object
from prunec.validators.manifest import LISTING, MANIFEST, check_listing
from prunec.validators.tables import plain

SWEEP = "sweep.json"
_HINT = "give the output of a build or a sweep, or a folder with config.json"


@dataclass(frozen=True)
class Verification:
    """What was checked and what is wrong, a sentence each. `notes` is what could not be checked."""

    folder: str
    kind: Literal["sweep", "build", "artefact", "model"]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as `prunec verify --json` prints it."""
        found = asdict(self)
        return {"intact": not self.problems, **found}


def verify(folder: Path, reading: Reading = lambda name: None) -> Verification:
    """Check a folder; `reading` is told of every file and tensor before it is read.

    UserError for a folder that is not there, or is none of what can be verified.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(Diagnostic(f"{folder} {what}", hint=_HINT))
    try:
        return (
            _verify_sweep(folder, reading) if (folder / SWEEP).exists() else _one(folder, reading)
        )
    except ValidationError as error:
        raise UserError(Diagnostic(error.message, hint=_HINT)) from None


def _one(folder: Path, reading: Reading) -> Verification:
    """A build or an artefact. ValidationError if the folder is neither."""
    problems, notes = list[str](), list[str]()
    kind: Literal["build", "artefact", "model"]
    kind = "artefact" if (folder / LISTING).is_file() else "model"
    try:
        found = inspect(folder, reading)
        kind = "build" if found.kind == "build" else kind
        problems += found.problems
    except ValidationError as error:
        if not (folder / "config.json").is_file():
            raise
        problems += [error.message, *check_listing(folder, reading)]
    artefacts = [folder]
    if kind == "build":
        artefacts = [folder / kind for kind in EXPORTERS if (folder / kind).is_dir()]
    elif kind == "model":
        wrong, checked = check_hub_hashes(folder, reading)
        problems += wrong
        if not checked:
            notes.append(f"{folder} has no hashes: that its files open is all that can be said")
    for artefact in artefacts:
        wrong, told = check_artefact(artefact, reading)
        problems, notes = [*problems, *wrong], [*notes, *told]
    return Verification(str(folder), kind, _distinct(problems), _distinct(notes))


def _verify_sweep(folder: Path, reading: Reading) -> Verification:
    """Every point that was built. ValidationError if the sweep's own file is damaged."""
    problems, notes = list[str](), list[str]()
    for point in _points(folder):
        name = str(point.get("folder"))
        place = folder / name
        if Path(name).name != name:
            problems.append(f"{SWEEP} has a point outside its folder: {name!r}")
        elif point.get("error") is not None:
            notes.append(f"{name} was not built: {point['error']}")
            if (place / MANIFEST).exists():
                problems.append(f"{name} was not built, and has a {MANIFEST} all the same")
        elif not place.is_dir():
            problems.append(f"{name} is missing")
        else:
            try:
                found = _one(place, reading)
            except ValidationError as error:
                problems.append(error.message)
                continue
            problems += [f"{name}: {sentence}" for sentence in found.problems]
            notes += [f"{name}: {sentence}" for sentence in found.notes]
    return Verification(str(folder), "sweep", _distinct(problems), _distinct(notes))


def _points(folder: Path) -> Iterator[dict[str, Any]]:
    points = read_json_object(folder / SWEEP).get("points")
    if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
        raise ValidationError(f"{folder / SWEEP} does not list any points")
    yield from points


def _distinct(sentences: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(sentences))


def counting(update: Callable[[int, int, str], None]) -> Reading:
    """A `reading` that shows how much was read; how much there is shows only at the end."""
    count = 0

    def reading(name: str) -> None:
        nonlocal count
        count += 1
        update(count, count, f"files and tensors, {name}")

    return reading


def render(found: Verification, console: Console) -> None:
    """One line for the verdict, one for each problem and note."""
    verdict = "intact" if not found.problems else "not intact"
    console.print(plain(f"{found.folder}: a {found.kind}, {verdict}", "bold"), soft_wrap=True)
    for problem in found.problems:
        console.print(plain("problem", "bold red"), plain(problem), soft_wrap=True)
    for note in found.notes:
        console.print(plain("note", "bold"), plain(note), soft_wrap=True)
