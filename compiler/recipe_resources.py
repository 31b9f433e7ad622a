# SPDX-License-Identifier: Apache-2.0
"""What a build may take of the machine that it runs on. It changes how long it takes, not what it
finds: nothing of it is part of a fingerprint.

Imported through `prunec.compiler.recipe`, which is the whole contract.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, WithJsonSchema

from prunec.compiler.diagnostics import shown
from prunec.compiler.recipe_checks import refusal
from prunec.compiler.recipe_sources import Section

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


def auto_or_number(value: object) -> object:
    """`auto`, or how many threads."""
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST_THREADS:
        return value
    if value == "auto":
        return value
    raise refusal(f"is {shown(value)}; it must be auto or a whole number from 1 to {_MOST_THREADS}")


def of_a_gpu(value: object, info: ValidationInfo) -> object:
    """Refuses a limit for a GPU that is not to be used."""
    if value is not None and info.data.get("device") == "cpu":
        raise refusal("is given, and resources.device is cpu", "remove one of the two")
    return value


_MOST_THREADS = 4096

Size = Annotated[
    int,
    BeforeValidator(in_bytes),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1},
                {"type": "string", "pattern": f"^{_SIZE.pattern}$"},
            ]
        }
    ),
]


class Resources(Section):
    """What a build may take of the machine. Sizes are written with their unit: `6GiB`."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="Where the work is done; `auto`: on a GPU if there is one. GPUs round "
        "otherwise, so that two builds of one recipe are alike on one kind of device only.",
    )
    memory: Size | None = Field(
        default=None,
        description="The most memory of the process. A plan that cannot keep to it is refused; a "
        "build takes as much of what is free as makes it fastest where nothing is said.",
    )
    gpu_memory: Annotated[Size | None, BeforeValidator(of_a_gpu)] = Field(
        default=None, description="The most memory on the GPU."
    )
    disk: Size | None = Field(
        default=None,
        description="The most bytes of results, exports and files that are gone when a build ends.",
    )
    threads: Annotated[int | Literal["auto"], BeforeValidator(auto_or_number)] = Field(
        default="auto", description="Threads of the CPU; `auto`: as PyTorch chooses."
    )

    @property
    def plans_for_gpu(self) -> bool:
        """Whether a plan, which is made on any machine, counts with a GPU."""
        return self.device == "cuda" or self.gpu_memory is not None
