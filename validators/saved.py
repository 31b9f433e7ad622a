# SPDX-License-Identifier: Apache-2.0
"""A report read back from its report.json."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from prunec.validators.errors import ValidationError
from prunec.validators.headers import read_json_object
from prunec.validators.results import SCHEMA_VERSION, Report


def read_report(path: Path) -> Report:
    """The report in a file, its numbers NaN where they are null. ValidationError if it is none, or
    of another version of prunec."""
    content = read_json_object(path)
    version = content.get("schema_version")
    hint = "build or validate it again to have its report written anew"
    if version != SCHEMA_VERSION:
        raise ValidationError(
            f"{path} has schema_version {version!r}; this prunec reads {SCHEMA_VERSION}", hint
        )
    try:
        report = _read(Report, content)
    except (TypeError, ValueError) as error:
        raise ValidationError(f"{path} is not a report of this prunec: {error}", hint) from None
    assert isinstance(report, Report)  # which is what was asked for
    return report


def _read(kind: Any, value: Any, at: str = "report") -> Any:
    """JSON data as a noun, or a part of one. TypeError, ValueError if it is something else.

    Keys that the noun does not know are left: they are derived from others.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        kinds = [part for part in parts if part is not types.NoneType]
        fitting = [kind for kind in kinds if type(value) is kind]  # a text or a number
        return _read((fitting or kinds[-1:])[0], value, at)
    if is_dataclass(kind) and isinstance(kind, type):
        known = _mapping(value, at)
        hints = get_type_hints(kind)
        here = (each.name for each in fields(kind) if each.name in known)
        return kind(**{name: _read(hints[name], known[name], f"{at}.{name}") for name in here})
    if origin is Mapping:
        return {
            key: _read(parts[1], item, f"{at}.{key}") for key, item in _mapping(value, at).items()
        }
    if origin in (tuple, Sequence):
        if not isinstance(value, list):
            raise TypeError(f"{at} is not a list")
        return tuple(_read(parts[0], item, f"{at}.{place}") for place, item in enumerate(value))
    if origin is Literal:
        if value not in parts:
            raise ValueError(f"{at} is {value!r}")
        return value
    return _scalar(kind, value, at)


def _mapping(value: Any, at: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{at} is not a mapping")
    return value


def _scalar(kind: type, value: Any, at: str) -> Any:
    if kind is float:
        if value is None:
            return math.nan
        if type(value) in (int, float):
            return float(value)
    elif type(value) is kind:
        return value
    raise TypeError(f"{at} is not {kind.__name__}: {value!r}")
