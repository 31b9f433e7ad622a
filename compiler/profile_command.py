# SPDX-License-Identifier: Apache-2.0
"""What `prunec profile` is asked to measure, and how: the model of a recipe, a model as it is, or
the machine itself."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from pydantic import ValidationError

from prunec import recipes
from prunec.compiler.diagnostics import BuildError, Diagnostic, UserError, quoted
from prunec.compiler.interruptions import leaving_at_once
from prunec.compiler.progress import Narrator
from prunec.compiler.recipe import ModelSpec, Target
from prunec.compiler.recipe_file import load_recipe

if TYPE_CHECKING:
    from prunec.compiler.model.facts import Facts
    from prunec.compiler.search.latency import Latency

#: Spread of repeated measurements, as a share of the median, from which on it is mentioned.
RESTLESS = 0.2

_TABLE = Path("latency.json")

#: What only a latency table and a machine's profile have at their tops.
_OF_A_TABLE = frozenset({"format", "prefill", "decode"})
_OF_A_MACHINE = frozenset({"measured_on", "rates"})
_DTYPES = get_args(ModelSpec.model_fields["dtype"].annotation)


@dataclass(frozen=True)
class Request:
    """A model, the step of its MLP widths, and where the table goes; path: the recipe, whose lines
    mistakes are told by, or the model."""

    path: Path
    model: ModelSpec
    multiple_of: int
    output: Path


def profile_machine(
    destination: Path, device: str | None, model: Path | None, narrator: Narrator
) -> str:
    """Write what this machine does in a second; what is to be said of it. UserError, BuildError."""
    if model is not None:
        raise UserError(
            Diagnostic("--machine measures no model", hint=f"leave out {shlex.quote(str(model))}")
        )
    _check_place("--machine", destination, _OF_A_MACHINE)
    with leaving_at_once():
        from prunec.compiler import machine_profiler
        from prunec.compiler.profiler import find_device

    folder, where = destination.absolute().parent, find_device(device)
    with narrator.step("profile") as update:
        measured = machine_profiler.profile_machine(
            destination.stem, where, folder, lambda done, of: update(done, of, "samples")
        )
    try:
        measured.save(destination)
    except OSError as error:
        raise BuildError(f"{destination} cannot be written: {error.strerror}") from None
    return f"written to {destination}"


def profile_model(
    asked: Request,
    device: str | None,
    narrator: Narrator,
    *,
    batch: int,
    tokens: int,
    repeats: int,
) -> tuple[Facts, Latency, str]:
    """Measure and write a latency table; the model, the table, and what is to be said of it.

    UserError where there is no such model, device or folder.
    """
    _check_place("--output", asked.output, _OF_A_TABLE)
    with leaving_at_once():
        from prunec.compiler.planned import placed
        from prunec.compiler.profiler import find_device, profile
        from prunec.compiler.subject import subject_for_plan

    with placed(asked.path):
        facts = subject_for_plan(asked.model).facts
    where = find_device(device)
    with narrator.step("profile") as update:
        latency = profile(
            facts,
            asked.model.dtype,
            where,
            batch=batch,
            tokens=tokens,
            multiple_of=asked.multiple_of,
            repeats=repeats,
            on_progress=lambda done, of: update(done, of, "samples"),
        )
    latency.save(asked.output)
    said = f"written to {asked.output}"
    if latency.spread > RESTLESS:
        said += "; the machine was busy, and a table from an idle one would be more exact"
    return facts, latency, said


def _check_place(option: str, file: Path, keys: frozenset[str]) -> None:
    """UserError where a file cannot be written, or would replace one that no profile wrote; keys:
    those that such a file has."""
    if not file.absolute().parent.is_dir():
        raise UserError(Diagnostic(f"{option}: there is no folder {file.parent}"))
    if not file.exists():
        return
    try:
        ours = keys <= json.loads(file.read_bytes()).keys()
    except (OSError, ValueError, AttributeError, RecursionError):
        ours = False
    if not ours:
        raise UserError(
            Diagnostic(
                f"{option}: {file} exists, and is no profile that prunec wrote; it would be "
                "replaced",
                hint="give another file, or move it away",
            )
        )


def is_model(argument: Path) -> bool:
    """Whether an argument means a model (a folder, a hub id) rather than a recipe."""
    if argument.is_dir():
        return True
    recipe_like = argument.is_file() or argument.suffix in (".yaml", ".yml")
    return not recipe_like and len(argument.parts) > 1


def request(argument: Path | None, dtype: str | None, output: Path | None) -> Request:
    """What a RECIPE or MODEL argument asks for; UserError if that cannot be.

    output: where the table is to go, in place of what the recipe names
    """
    if argument is None:
        raise UserError(Diagnostic("profile needs a RECIPE or a MODEL, or --machine FILE"))
    if dtype is not None and dtype not in _DTYPES:
        legal = f"{', '.join(_DTYPES[:-1])} or {_DTYPES[-1]}"
        raise UserError(Diagnostic(f"--dtype is {quoted(dtype)}; it must be {legal}"))
    if not is_model(argument):
        path = recipes.find(argument)
        recipe = load_recipe(path, [f"model.dtype={dtype}"] if dtype else ())
        named = recipe.target.speedup.profile if recipe.target.speedup else _TABLE
        return Request(path, recipe.model, recipe.target.multiple_of, output or named)
    values = {"source": str(argument)} | ({"dtype": dtype} if dtype else {})
    try:
        model = ModelSpec.model_validate(values, context={"folder": Path.cwd()})
    except ValidationError as error:
        first = error.errors()[0]
        hint = first.get("ctx", {}).get("hint")
        raise UserError(Diagnostic(f"the model {first['msg']}", hint=hint)) from None
    default = Target.model_fields["multiple_of"].default
    return Request(argument, model, default, output or _TABLE)
