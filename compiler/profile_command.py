# SPDX-License-Identifier: Apache-2.0
"""What `prunec profile` is asked to measure: the model of a recipe, or a model as it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from prunec.compiler.diagnostics import Diagnostic, UserError, quoted
from prunec.compiler.recipe import ModelSpec, Target
from prunec.compiler.recipe_file import load_recipe

_DTYPES = get_args(ModelSpec.model_fields["dtype"].annotation)


@dataclass(frozen=True)
class Request:
    """A model, the step of its MLP widths, and where the table goes if nothing else is said."""

    model: ModelSpec
    multiple_of: int
    output: Path


def is_model(argument: Path) -> bool:
    """Whether an argument means a model (a folder, a hub id) rather than a recipe."""
    if argument.is_dir():
        return True
    recipe_like = argument.is_file() or argument.suffix in (".yaml", ".yml")
    return not recipe_like and len(argument.parts) > 1


def request(argument: Path, dtype: str | None) -> Request:
    """What a RECIPE or MODEL argument asks for; UserError if that cannot be."""
    if dtype is not None and dtype not in _DTYPES:
        legal = f"{', '.join(_DTYPES[:-1])} or {_DTYPES[-1]}"
        raise UserError(Diagnostic(f"--dtype is {quoted(dtype)}; it must be {legal}"))
    output = Path("latency.json")
    if not is_model(argument):
        recipe = load_recipe(argument, [f"model.dtype={dtype}"] if dtype else ())
        if recipe.target.speedup:
            output = recipe.target.speedup.profile
        return Request(recipe.model, recipe.target.multiple_of, output)
    values = {"source": str(argument)} | ({"dtype": dtype} if dtype else {})
    try:
        model = ModelSpec.model_validate(values, context={"folder": Path.cwd()})
    except ValidationError as error:
        first = error.errors()[0]
        hint = first.get("ctx", {}).get("hint")
        raise UserError(Diagnostic(f"the model {first['msg']}", hint=hint)) from None
    default = Target.model_fields["multiple_of"].default
    return Request(model, default, output)
