# SPDX-License-Identifier: Apache-2.0
"""How a recipe may ask for a model to be made smaller: the methods and their settings.

A method's `reads` names the optional sections of a recipe that it obeys. Imported through
`prunec.compiler.recipe`, which is the whole contract.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

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
        description="Share of the least-squares target that is taken from the dense model's "
        "activations rather than the pruned path's.",
    ),
]


class TyrMethod(Section):
    """Evolutionary search over a supernet of exactly solved levels; the winner is solved anew."""

    reads: ClassVar[frozenset[str]] = frozenset({"calibration", "search"})
    kind: Literal["tyr"] = Field(description="How the model is made smaller.")
    damping: Damping = 0.01
    dense_target: DenseTarget = 0.0
    rounds: int = Field(
        default=3, ge=1, le=8, description="Rounds of supernet and search, from coarse to fine."
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


class UniformMethod(Section):
    """Every layer loses the same share: the same solver as `tyr`, without the search."""

    reads: ClassVar[frozenset[str]] = frozenset({"calibration"})
    kind: Literal["uniform"] = Field(description="How the model is made smaller.")
    damping: Damping = 0.01
    dense_target: DenseTarget = 0.0


class MagnitudeMethod(Section):
    """The units of smallest weight norm go, nothing is refitted: the floor to beat."""

    reads: ClassVar[frozenset[str]] = frozenset()
    kind: Literal["magnitude"] = Field(description="How the model is made smaller.")


Method = Annotated[TyrMethod | UniformMethod | MagnitudeMethod, Field(discriminator="kind")]
