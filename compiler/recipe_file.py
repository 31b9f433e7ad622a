# SPDX-License-Identifier: Apache-2.0
"""Loads a recipe from its file, with `--set` overrides, or says all that is wrong with it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prunec import recipes
from prunec.compiler.diagnostics import Diagnostic, UserError, printable, quoted, shown
from prunec.compiler.recipe import Recipe
from prunec.compiler.recipe_errors import diagnose, dotted, origin_of
from prunec.compiler.recipe_yaml import Document, Origin, read_yaml
from prunec.compiler.secrets import redacted

MAX_BYTES = 1 << 20
AFTER_THE_FILE = 1 << 40  # as a line number: mistakes in options are told last


def place_of(path: Path, overrides: Sequence[str], key: str) -> str:
    """Where a dotted key stands in a sound recipe: `file:line:column`, or the option it is from."""
    document = read_yaml(_text(path), str(path))
    for number, option in enumerate(overrides):
        _override(document, option, number)
    return origin_of(tuple(key.split(".")), document).place


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, settled: `overrides` are `dotted.key=value`, the value in YAML.

    Raises UserError with every mistake that was found, each with its place: `file:line:column`,
    or the option. Relative paths in the recipe are relative to the file's folder.
    """
    document = read_yaml(_text(path), str(path))
    if document.value is None:
        hint = "`prunec recipes` lists the recipes that ship with prunec"
        raise UserError(Diagnostic("the recipe is empty", document.top.place, hint))
    if not isinstance(document.value, dict):
        place = document.values[()].place
        message = f"a recipe is a mapping of keys to values, and this is {shown(document.value)}"
        raise UserError(Diagnostic(message, place))
    for number, option in enumerate(overrides):
        _override(document, option, number)
    problems = list(document.problems)
    recipe: Recipe | None = None
    try:
        recipe = Recipe.model_validate(document.value, context={"folder": path.resolve().parent})
    except ValidationError as error:
        problems += diagnose(error, document)
    if problems or recipe is None:
        raise UserError(*(diagnostic for _, diagnostic in sorted(problems, key=lambda one: one[0])))
    return recipe


def _text(path: Path) -> str:
    try:
        # A pipe or a device would be read for ever.
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "not a regular file"
            raise UserError(Diagnostic(f"a recipe is a YAML file, and this is {kind}", str(path)))
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UserError(Diagnostic("there is no such file", str(path), _near(path))) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a legal name"
        message = f"the recipe cannot be read: {reason.lower()}"
        raise UserError(Diagnostic(message, printable(str(path), 200))) from None
    if len(data) > MAX_BYTES:
        message = f"a recipe has at most {MAX_BYTES} bytes, and this file has more"
        raise UserError(Diagnostic(message, str(path)))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        read = error.object  # without a byte order mark
        before = read[: error.start]
        line = before.count(b"\n") + 1
        column = len(before[before.rfind(b"\n") + 1 :].decode()) + 1
        message = f"a recipe is UTF-8 text, and the byte 0x{read[error.start]:02x} here is not"
        raise UserError(Diagnostic(message, f"{path}:{line}:{column}")) from None


def _near(path: Path) -> str | None:
    """Advice where a recipe is not there: a file beside it, or a recipe that ships with prunec."""
    try:
        there = {entry.name: str(path.parent / entry.name) for entry in path.parent.iterdir()}
    except OSError:
        return f"there is no folder {path.parent} either"
    if path.parent == Path():
        shipped = sorted(found.stem for found in recipes.folder().glob("*.yaml"))
        there |= {name: name for name in shipped} if not path.suffix else {}
    near = difflib.get_close_matches(path.name, there, n=1)
    if near:
        return f"did you mean {there[near[0]]}?"
    if path.parent == Path() and not path.suffix:
        return f"the recipes that ship with prunec: {', '.join(shipped)}"
    return None


def _override(document: Document, option: str, number: int) -> None:
    """Sets one value in the document; a mistake goes to its problems."""
    origin = Origin(AFTER_THE_FILE, number, f"--set {printable(redacted(option))}")
    key, equals, text = option.partition("=")
    parts = key.strip().split(".")
    try:
        if not equals or not all(parts):
            raise UserError(Diagnostic("an override is written dotted.key=value"))
        value = read_yaml(text, "the value")
        if value.problems:
            raise UserError(*(problem for _, problem in value.problems))
        _put(document, parts, value, origin)
    except UserError as error:
        document.problems += [
            (origin, Diagnostic(problem.message, origin.place, problem.hint))
            for problem in error.diagnostics
        ]


def _put(document: Document, parts: list[str], value: Document, origin: Origin) -> None:
    """Puts a value where the parts lead, making the sections on the way that are not there."""
    node: Any = document.value
    path: tuple[str | int, ...] = ()
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        if not isinstance(node, dict | list):
            message = f"{dotted(path)} is {shown(node)}, so it has no key {quoted(part)}"
            raise UserError(Diagnostic(message))
        step: Any = part
        if isinstance(node, list):
            if not (part.isdecimal() and len(part) < 6 and int(part) <= len(node)):
                message = (
                    f"{dotted(path)} is a list of {len(node)}, so it has no item {quoted(part)}"
                )
                raise UserError(Diagnostic(message, hint="items are counted from 0"))
            step = int(part)
            if step == len(node):
                node.append(None)
        path = (*path, step)
        if following is None:
            node[step] = value.value
        elif (node.get(step) if isinstance(node, dict) else node[step]) is None:
            node[step] = [] if following == "0" else {}
        else:
            node = node[step]
            continue
        node = node[step]
        document.keys[path] = document.values[path] = origin
    for places in (document.keys, document.values):
        for old in [old for old in places if old[: len(path)] == path]:
            del places[old]
    document.keys[path] = document.values[path] = origin
    for inner in {*value.keys, *value.values}:
        document.keys[(*path, *inner)] = document.values[(*path, *inner)] = origin
