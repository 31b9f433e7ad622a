# SPDX-License-Identifier: Apache-2.0
"""What a build may take of the machine that it runs on. It changes how long it takes, not what it
finds; only the kind of device, and batches that get smaller where memory is short, round otherwise
and are part of fingerprints.

Imported through `prunec.compiler.recipe`, which is the whole contract.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo

from prunec.compiler.diagnostics import shown
from prunec.compiler.recipe_checks import refusal
from prunec.compiler.recipe_sizes import Size
from prunec.compiler.recipe_sources import Section


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
