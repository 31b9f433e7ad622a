# SPDX-License-Identifier: Apache-2.0
"""How small or how fast a recipe may ask for, and in what shape.

Imported through `prunec.compiler.recipe`, which is the whole contract.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from prunec.compiler import recipe_checks
from prunec.compiler.recipe_checks import refusal
from prunec.compiler.recipe_sizes import Size
from prunec.compiler.recipe_sources import Section

LatencyTable = Annotated[
    Path,
    Field(strict=False),  # YAML has no paths
    AfterValidator(recipe_checks.absolute_path),  # `prunec profile` may have yet to write it
]


class Speedup(Section):
    """How much faster on one machine, whose times `prunec profile` has measured."""

    ratio: float = Field(
        gt=1, description="Time of the dense model's forward pass over that of the pruned one."
    )
    phase: Literal["prefill", "decode"] = Field(
        description="`prefill`: many tokens at once. `decode`: one token after the other, with the "
        "others in the KV cache."
    )
    profile: LatencyTable = Field(
        description="The latency table that `prunec profile` writes, relative to the recipe."
    )


class Target(Section):
    """How much smaller or faster, and in what shape: exactly one of the first five."""

    sizes: ClassVar[tuple[str, ...]] = (
        "sparsity",
        "parameters",
        "weight_bytes",
        "kv_bytes_per_token",
        "speedup",
    )

    sparsity: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Share of the prunable parameters that is physically removed.",
    )
    parameters: int | None = Field(
        default=None, ge=1, description="The most parameters, embeddings included."
    )
    weight_bytes: Size | None = Field(
        default=None,
        description="The most bytes that the weights take, at model.dtype: a number, or `6GiB`.",
    )
    kv_bytes_per_token: Size | None = Field(
        default=None,
        description="The most bytes that a token adds to the KV cache, at model.dtype; MLPs stay "
        "as they are.",
    )
    speedup: Speedup | None = Field(default=None, description="How much faster the model runs.")
    layout: Literal["per_layer", "uniform"] = Field(
        default="per_layer",
        description="`per_layer`: each layer has a shape of its own. `uniform`: all layers alike, "
        "so that every runtime loads the model without code.",
    )
    multiple_of: int = Field(
        default=16, ge=1, le=4096, description="FFN widths are multiples of this."
    )

    @property
    def size(self) -> str:
        """The key of the size that is asked for."""
        return next(name for name in self.sizes if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _one_size(self) -> Target:
        given = [name for name in self.sizes if getattr(self, name) is not None]
        if not given:
            raise refusal(
                f"has no size; it must have one of {', '.join(self.sizes)}",
                "for example target: {sparsity: 0.5}",
            )
        if len(given) > 1:
            raise refusal(
                f"is given beside target.{given[0]}; there may be one size",
                f"remove one of them; as an option: --set target.{given[0]}=null",
                within=(given[1],),
            )
        return self
