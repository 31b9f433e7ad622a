# SPDX-License-Identifier: Apache-2.0
"""Says what is wrong with a recipe: pydantic's findings as diagnostics, in our words and placed.

The legal values in a message come from the field's own type and bounds, so that a sentence cannot
disagree with the check.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path as FilePath
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from prunec.compiler.diagnostics import Diagnostic, printable, shown
from prunec.compiler.recipe import Recipe
from prunec.compiler.recipe_sources import Section
from prunec.compiler.recipe_yaml import Document, Origin, Path

RANGE_ERRORS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}
_LONGEST = 2000  # characters of a message
#: What else people call a choice; each is offered only where it is legal.
_OTHER_NAMES = {
    "gpu": "cuda",
    "nvidia": "cuda",
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "huggingface": "hf",
    "transformers": "hf",
    "safetensors": "hf",
    "onnxruntime": "onnx",
    "ort": "onnx",
    "json": "jsonl",
    "parquet": "jsonl",
    "messages": "chat",
    "txt": "text",
    "dataset": "hub",
    "heterogeneous": "per_layer",
}
_PLURALS = {str: "strings", FilePath: "paths", int: "whole numbers"}
NUMBER = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?")


def diagnose(error: ValidationError, document: Document) -> list[tuple[Origin, Diagnostic]]:
    """Every finding as a diagnostic at its place in the document."""
    details = error.errors(include_url=False)
    placed: list[tuple[Origin, Diagnostic]] = []
    unknown_kinds = {
        _follow(found["loc"])[0][:-1]
        for found in details
        if found["type"] == "literal_error" and found["loc"][-1] == "kind"
    }
    taken_for: set[Path] = set()  # keys that a misspelt neighbour stands for
    for found in details:
        if found["type"] == "extra_forbidden":
            path, sections, _ = _follow(found["loc"][:-1])
            near = _near(str(found["loc"][-1]), _keys(sections[0])) if sections else []
            taken_for.update((*path, key) for key in near)
    for found in details:
        path = _follow(found["loc"])[0]
        if path in taken_for and found["type"] == "missing":
            continue
        if path[:-1] in unknown_kinds and path[-1] != "kind":
            continue  # of an unknown kind, nobody knows the keys
        placed.append(_diagnostic(found, document))
    return placed


def dotted(path: Path) -> str:
    """A path as `--set` takes it: `export.0.kind`."""
    return ".".join(printable(str(element), 40) for element in path)


def _diagnostic(found: ErrorDetails, document: Document) -> tuple[Origin, Diagnostic]:
    path, sections, field = _follow(found["loc"])
    context: dict[str, Any] = found.get("ctx", {})
    value = found["input"]
    hint: str | None = None
    at_key = False
    match found["type"]:
        case "refusal":
            path = context["at"] or (*path, *context["within"])
            message, hint = f"{dotted(path)} {context['problem']}", context["hint"]
            at_key = document.is_section(path)
        case "extra_forbidden":
            message, hint = _unknown_key(path, _follow(found["loc"][:-1])[1])
            at_key = True
        case "literal_error" if found["loc"][-1] == "[key]":  # of a mapping with given keys
            path = path[:-1]
            keys = re.findall(r"'([^']*)'", context["expected"])
            message = f'{dotted(path[:-1])} has no key "{printable(str(value), 40)}"'
            hint = _did_you_mean(value, keys) or f"its keys are {', '.join(keys)}"
            at_key = True
        case "missing":
            message = f"{dotted(path)} is missing; it must be {_legal(field, path)}"
        case "union_tag_not_found":
            path = (*path, "kind")
            message = f"{dotted(path)} is missing; it must be {_one_of(_kinds(sections))}"
        case "union_tag_invalid":
            path = (*path, "kind")
            value, kinds = value["kind"], _kinds(sections)
            message = f"{dotted(path)} is {shown(value)}; it must be {_one_of(kinds)}"
            hint = _did_you_mean(value, kinds)
        case kind:
            legal = _legal(field, path, range_only=kind in RANGE_ERRORS)
            message = f"{dotted(path)} is {shown(value)}; it must be {legal}"
            hint = _advice(value, field, sections)
    origin = origin_of(path, document, at_key=at_key)
    # A path that is named may hold anything too.
    message, hint = printable(message, _LONGEST), hint and printable(hint, _LONGEST)
    return origin, Diagnostic(message, origin.place, hint)


def origin_of(path: Path, document: Document, *, at_key: bool = False) -> Origin:
    """Where a value stands (or its key); where it is missing, the key of what should hold it."""
    first, second = (document.keys, document.values)[:: 1 if at_key else -1]
    origin = first.get(path) or second.get(path)
    while origin is None and path:
        path = path[:-1]
        origin = document.keys.get(path)
    return origin or document.top


def _follow(loc: tuple[int | str, ...]) -> tuple[Path, tuple[type[Section], ...], FieldInfo | None]:
    """The path in the document, the sections that may stand there, and the last key's field.

    Pydantic's location also names the variant of a union that was chosen; the document does not.
    """
    path: Path = ()
    sections: tuple[type[Section], ...] = (Recipe,)
    field: FieldInfo | None = None
    for element in loc:
        if len(sections) > 1 and isinstance(element, str):  # an item's number comes before it
            sections = tuple(one for one in sections if element in _kinds((one,)))
            continue
        path = (*path, element)
        if isinstance(element, str):
            field = _keys(sections[0]).get(element) if sections else None
            sections = _sections(field.annotation) if field else ()
    return path, sections, field


def _keys(section: type[Section]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in section.model_fields.items()}


def _sections(annotation: Any) -> tuple[type[Section], ...]:
    """The sections that an annotation names, through unions, lists and Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return (annotation,)
    return tuple(found for inner in get_args(annotation) for found in _sections(inner))


def _kinds(sections: Iterable[type[Section]]) -> list[str]:
    fields = (section.model_fields.get("kind") for section in sections)
    return [kind for field in fields if field for kind in get_args(field.annotation)]


def _unknown_key(path: Path, sections: tuple[type[Section], ...]) -> tuple[str, str | None]:
    key = str(path[-1])
    owner = dotted(path[:-1]) or "a recipe"
    keys = list(_keys(sections[0])) if sections else []
    kinds = _kinds(sections)
    of_kind = f" of kind {kinds[0]}" if kinds else ""
    hint = _did_you_mean(key, keys) or f"its keys are {', '.join(keys)}"
    return f'{owner}{of_kind} has no key "{printable(key, 40)}"', hint


def _near(word: str, legal: Iterable[str]) -> list[str]:
    # The comparison is quadratic, and a word this long is no slip.
    return difflib.get_close_matches(word, list(legal), n=1) if len(word) <= 40 else []


def _did_you_mean(value: object, legal: Iterable[str]) -> str | None:
    legal = list(legal)
    if isinstance(value, str) and _OTHER_NAMES.get(value.lower()) in legal:
        return f"did you mean {_OTHER_NAMES[value.lower()]}?"
    near = _near(value, legal) if isinstance(value, str) else []
    return f"did you mean {near[0]}?" if near else None


def _one_of(choices: Iterable[object]) -> str:
    *most, last = [str(choice) for choice in choices]
    return f"{', '.join(most)} or {last}" if most else last


def _parts(annotation: Any) -> tuple[Any, list[Any]]:
    """The type inside Optional and Annotated, and the constraints that were found on the way."""
    constraints: list[Any] = []
    while True:
        if hasattr(annotation, "__metadata__"):
            for item in annotation.__metadata__:
                constraints += item.metadata if isinstance(item, FieldInfo) else [item]
            annotation = annotation.__origin__
            continue
        inner = [one for one in get_args(annotation) if one is not NoneType]
        if NoneType not in get_args(annotation) or len(inner) != 1:
            return annotation, constraints
        annotation = inner[0]


def _legal(field: FieldInfo | None, path: Path, *, range_only: bool = False) -> str:
    """What may stand at a path, as it follows on "it must be"."""
    if field is None:
        return "a mapping"
    kind, constraints = _parts(field.annotation)
    constraints = [*field.metadata, *constraints]
    if get_origin(kind) is list and isinstance(path[-1], int):
        kind, constraints = _parts(get_args(kind)[0])
    if kind in (int, float):
        bounds = _bounds(constraints)
        name = "a whole number" if kind is int else "a number"
        joint = " of " if bounds.startswith("at ") else " "
        return bounds if range_only else f"{name}{joint}{bounds}".strip()
    if kind is str:
        filled = any(hasattr(item, "min_length") for item in constraints)
        return "a string that is not empty" if filled else "a string"
    if kind is FilePath:
        return "the path of a file"
    if get_origin(kind) is Literal:
        return _one_of(get_args(kind))
    if kind is bool:
        return "true or false"
    if get_origin(kind) is list:
        item, _ = _parts(get_args(kind)[0])
        if get_origin(item) is Literal:
            return f"a list of one or more of {', '.join(map(str, get_args(item)))}"
        return f"a list of one or more {_PLURALS.get(item, 'mappings')}"
    kinds = _kinds(_sections(kind))
    return f"a mapping with a kind ({_one_of(kinds)})" if kinds else "a mapping"


def _is_share(constraints: Iterable[Any]) -> bool:
    """Whether constraints leave what lies between 0 and 1."""
    bounds = [
        {getattr(item, name) for item in constraints for name in names if hasattr(item, name)}
        for names in (("gt", "ge"), ("lt", "le"))
    ]
    return bounds == [{0}, {1}]


def _percentage(value: object) -> float | None:
    """The share that a percentage stands for: 50 and "50%" are 0.5."""
    if isinstance(value, str) and value.rstrip().endswith("%"):
        text = value.rstrip()[:-1].strip()
        value = float(text) if NUMBER.fullmatch(text) and "_" not in text else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 2 <= value <= 100:
        return None
    return value / 100


def _bounds(constraints: Iterable[Any]) -> str:
    """The range that constraints leave, in words."""
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    bound = {
        name: getattr(item, name) for name in words for item in constraints if hasattr(item, name)
    }
    match bound:
        case {"gt": low, "lt": high}:
            return f"between {low} and {high} (exclusive)"
        case {"ge": low, "le": high}:
            return f"from {low} to {high}"
    return " and ".join(f"{words[name]} {limit}" for name, limit in bound.items())


def _advice(
    value: object, field: FieldInfo | None, sections: tuple[type[Section], ...]
) -> str | None:
    """What the user probably meant by a value of the wrong type."""
    kind, constraints = _parts(field.annotation) if field else (None, [])
    constraints = [*(field.metadata if field else ()), *constraints]
    if kind is float and _is_share(constraints) and (share := _percentage(value)) is not None:
        return f"it is a share, not a percentage: write {share:g}"
    if isinstance(value, str) and get_origin(kind) is Literal:
        return _did_you_mean(value, [one for one in get_args(kind) if isinstance(one, str)])
    if isinstance(value, str) and kind in (int, float) and NUMBER.fullmatch(value):
        return (
            f"a number is written without quotes and underscores: "
            f"{printable(value.replace('_', ''))}"
        )
    if isinstance(value, float) and kind is int and value.is_integer() and abs(value) < 2**53:
        return f"write {int(value)}"
    if isinstance(value, str) and value in _kinds(sections):
        return f"write {{kind: {value}}}"
    return None
