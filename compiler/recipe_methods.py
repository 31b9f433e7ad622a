# SPDX-License-Identifier: Apache-2.0
"""How a recipe may ask for a model to be made smaller: the methods and their settings.

A method's `reads` names the optional sections of a recipe that it obeys. Imported through
`prunec.compiler.recipe`, which is the whole contract.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from prunec.compiler.recipe_checks import refusal
from prunec.compiler.recipe_sources import Section

Damping = Annotated[
    float,
    Field(
        gt=0,
        description="Added to the Gram matrix's diagonal, as a share of the diagonal's mean.",
    ),
]
DenseTarget = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        description="How far the final weights are fitted to lead the hidden states back to the "
        "dense model's: 0 takes those of the pruned layers before for right. Where a family's "
        "sublayers end in a norm it is 0, and nothing else may be given.",
    ),
]


FirstOrder = Annotated[
    float,
    Field(
        ge=0,
        description="Weight of Týr's first-order term in what removing a unit costs; 1 is the "
        "published balance.",
    ),
]


class TyrMethod(Section):
    """Search over a supernet of exactly solved levels; the winner is solved anew."""

    reads: ClassVar[frozenset[str]] = frozenset({"calibration", "search"})
    #: What `faithful` obeys; it settles everything else as published.
    published: ClassVar[frozenset[str]] = frozenset(
        {"kind", "faithful", "accumulation", "damping", "rounds", "offspring"}
    )

    kind: Literal["tyr"] = Field(description="How the model is made smaller.")
    faithful: bool = Field(
        default=False,
        description="Prune as Týr was published, for comparison: every level solved on its own, "
        "query heads without their KV heads, a fixed split between attention and MLP. Unless "
        "they are given, `rounds` is then 4 and `offspring` 128.",
    )
    accumulation: Literal["centre", "weighted_mean"] = Field(
        default="centre",
        description="What a layer's inputs are computed with when `faithful`: the centre level of "
        "the layers before it, as in the released code, or the mean of all their levels weighted "
        "by what they keep, as in the paper.",
    )
    damping: Damping = 0.01
    dense_target: DenseTarget = 0.5
    first_order: FirstOrder = 0.0
    rounds: int = Field(
        default=1,
        ge=1,
        le=8,
        description="Rounds of supernet and search, each around the last winner, in finer steps.",
    )
    offspring: int = Field(
        default=16, ge=2, le=1024, description="Layouts proposed in each generation of the search."
    )
    first_step: float = Field(
        default=0.125,
        gt=0,
        le=0.5,
        description="Share of a sublayer that one level means in the first round; halved every "
        "round.",
    )

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("faithful") is True:
            return {"rounds": 4, "offspring": 128} | data
        return data

    @field_validator("*")
    @classmethod
    def _is_read(cls, value: object, info: ValidationInfo) -> object:
        name, faithful = info.field_name or "", info.data.get("faithful", False)
        if name == "faithful" or value == cls.model_fields[name].default:
            return value
        if faithful and name not in cls.published:
            raise refusal("is not read with `faithful: true`", "remove it")
        if name == "accumulation" and not faithful:
            raise refusal("is read with `faithful: true` only", "remove it, or add faithful: true")
        return value


class UniformMethod(Section):
    """Every layer loses the same share: the same solver as `tyr`, without the search."""

    reads: ClassVar[frozenset[str]] = frozenset({"calibration"})
    kind: Literal["uniform"] = Field(description="How the model is made smaller.")
    damping: Damping = 0.01
    dense_target: DenseTarget = 0.5
    first_order: FirstOrder = 0.0


class MagnitudeMethod(Section):
    """The units of smallest weight norm go, nothing is refitted: the floor to beat."""

    reads: ClassVar[frozenset[str]] = frozenset()
    kind: Literal["magnitude"] = Field(description="How the model is made smaller.")


Method = Annotated[TyrMethod | UniformMethod | MagnitudeMethod, Field(discriminator="kind")]
