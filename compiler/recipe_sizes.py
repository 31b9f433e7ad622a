# SPDX-License-Identifier: Apache-2.0
"""Numbers of bytes as a recipe may write them: `6GiB`, `1.5 GB`, or the whole number."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from prunec.compiler.diagnostics import shown
from prunec.compiler.recipe_checks import refusal

_UNITS = {"B": 1} | {
    f"{prefix}{infix}B": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for infix, base in (("i", 1024), ("", 1000))
}
_SIZE = re.compile(rf"(\d+(?:\.\d+)?) ?({'|'.join(_UNITS)})", re.ASCII)
_NEARLY = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt])i?b?", re.ASCII | re.IGNORECASE)


def in_bytes(value: object) -> object:
    """The bytes of a size such as `6GiB`."""
    if value is None:
        return None
    if isinstance(value, str):
        if size := _SIZE.fullmatch(value):
            number, unit = size.groups()
            value = int(float(number) * _UNITS[unit])
        elif nearly := _NEARLY.fullmatch(value):
            meant = f"{nearly[1]}{nearly[2].upper()}iB"
            raise refusal(f"is {shown(value)}; it must be a size with its unit", f"write {meant}")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise refusal(
            f"is {shown(value)}; it must be a size with its unit, or a whole number of bytes",
            "write it as 6GiB, 512MiB or 70GB",
        )
    return value


def _schema(least: int) -> dict[str, Any]:
    whole = {"type": "integer", "minimum": least}
    return {"anyOf": [whole, {"type": "string", "pattern": f"^{_SIZE.pattern}$"}]}


Size = Annotated[int, BeforeValidator(in_bytes), WithJsonSchema(_schema(1))]

_LEAST_SHARD = 1_000_000

#: A safetensors file holds a header and whole tensors: below a megabyte there would be thousands.
ShardSize = Annotated[
    int, BeforeValidator(in_bytes), Field(ge=_LEAST_SHARD), WithJsonSchema(_schema(_LEAST_SHARD))
]
