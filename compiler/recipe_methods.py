# SPDX-License-Identifier: Apache-2.0
"""How a recipe may ask for a model to be made smaller: the methods and their settings.

A method's `reads` names the optional sections of a recipe that it obeys. Imported through
`prunec.compiler.recipe`, which is the whole contract.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from prunec.compiler import recipe_checks
from prunec.compiler.passes.importance import needs_of
from prunec.compiler.recipe_checks import refusal
from prunec.compiler.recipe_sources import Section

Damping = Annotated[
    float,
    Field(
        gt=0,
        description="Added to the Gram matrix's diagonal, as a share of its mean; a channel counts "
        "with at most ten times the median, except with `faithful`.",
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
    centre: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="The sparsity of the uniform layout that the first supernet is built around; "
        "by default the target's. Builds for several targets that name the same share the "
        "supernet, as those of a sweep do.",
    )
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


Metric = Literal[
    "magnitude_l1",
    "magnitude_l2",
    "wanda",
    "fluctuation",
    "taylor_first",
    "taylor_second",
    "taylor_mixed",
    "taylor_vector",
    "obs",
    "reconstruction",
    "cfsp",
]
Aggregation = Literal["sum", "product", "max", "mean", "last"]
Allocation = Literal["uniform", "influence", "angular"]
Exponent = Annotated[float, Field(gt=0, le=4)]


class ImportanceMethod(Section):
    """Score every unit once by what it is worth, remove those of the lowest scores."""

    kind: Literal["importance"] = Field(description="How the model is made smaller.")
    metrics: Annotated[
        dict[Metric, Annotated[float, Field(ge=0)]], AfterValidator(recipe_checks.some_share)
    ] = Field(
        default={"wanda": 1.0},
        min_length=1,
        description="What a unit's worth is measured by; of several, the mean with these weights, "
        "each divided by its own mean over the sublayer's units before. The default is the "
        "steadiest of those that were compared (`benchmarks/RESULTS.md`).",
    )
    aggregation: Aggregation = Field(
        default="sum",
        description="What becomes of the scores of the matrices that a unit has a part in, where a "
        "metric scores more than the last one; `last` is that of the output or down projection.",
    )
    exponent: Exponent = Field(
        default=1.0, description="Power that a metric's scores are raised to before they are mixed."
    )
    allocation: Allocation = Field(
        default="uniform",
        description="How much each layer keeps. `uniform`: all the same share; `influence`: more "
        "where the layer turns the hidden states further, by 1 − cosine (ShortGPT's block "
        "influence); `angular`: the same by the angle (CFSP's coarse score).",
    )
    spread: float = Field(
        default=1.0,
        ge=0,
        le=10,
        description="How far `allocation` departs from uniform: 0 not at all.",
    )
    slope: float = Field(
        default=0.0,
        ge=-3,
        le=3,
        description="Keeps more of later layers (above 0) or of earlier ones: from the first "
        "layer to the last, the logarithm of what a layer keeps rises by twice this number.",
    )
    bend: float = Field(
        default=0.0,
        ge=-3,
        le=3,
        description="Keeps more of the outer layers (above 0) or of those in the middle: from the "
        "middle to either end, the logarithm of what a layer keeps rises by this number.",
    )
    attention: float = Field(
        default=1.0,
        ge=0.25,
        le=4,
        description="What attention keeps over what its layer keeps; the MLP gets the rest.",
    )
    refit: bool = Field(
        default=True,
        description="Whether the weights that stay are fitted to make up for what goes, layer by "
        "layer, as `tyr` and `uniform` do.",
    )
    damping: Damping = 0.01
    dense_target: DenseTarget = 0.5

    @property
    def reads(self) -> frozenset[str]:
        """Weights alone need no text, where nothing is refitted to any."""
        scoring = (metric for metric, weight in self.metrics.items() if weight > 0)
        of_text = self.refit or self.allocation != "uniform" or needs_of(scoring)
        return frozenset({"calibration"} if of_text else ())

    @field_validator("exponent", "spread", "damping", "dense_target")
    @classmethod
    def _is_read(cls, value: object, info: ValidationInfo) -> object:
        name, data = info.field_name or "", info.data
        if name == "exponent" and sum(w > 0 for w in data.get("metrics", {"": 1}).values()) < 2:
            raise refusal("is not read with one metric: the order stays the same", "remove it")
        if name == "spread" and data.get("allocation") == "uniform":
            raise refusal("is not read with `allocation: uniform`", "remove it")
        if name == "dense_target" and data.get("refit") is False:
            raise refusal("is not read with `refit: false`", "remove it")
        inverted = data.get("metrics", {}).get("obs", 0) > 0
        if name == "damping" and data.get("refit") is False and not inverted:
            raise refusal("is not read with `refit: false` by other metrics than obs", "remove it")
        return value


class CalibrationSpace(Section):
    """Which part of the calibration text a trial may calibrate on."""

    mixture: bool = Field(
        default=True,
        description="Whether the weights of a mixture's parts are tuned, where the source is one; "
        "otherwise they stay as given.",
    )
    lengths: list[Annotated[int, Field(ge=2)]] = Field(
        default=[],
        description="Lengths of window to choose from, in tokens; by default only "
        "calibration.sequence_length.",
    )
    loss_quantiles: int = Field(
        default=3,
        ge=1,
        le=8,
        description="Classes of equal size that windows are sorted into by the dense model's loss "
        "on them, of which a trial takes one or all; 1 sorts nothing.",
    )
    groups: int = Field(
        default=2,
        ge=1,
        le=64,
        description="Groups that the windows of each kind are dealt into. Statistics are kept for "
        "each, and a trial calibrates on some of them: how many, and which, is tuned.",
    )


class MetricSpace(Section):
    """How a trial may score units."""

    metrics: list[Metric] = Field(
        default=["magnitude_l2", "wanda", "taylor_first", "taylor_second", "taylor_vector", "obs"],
        min_length=1,
        description="The metrics that are mixed, each with a weight that is tuned.",
    )
    aggregations: list[Aggregation] = Field(
        default=["sum", "max", "last"],
        min_length=1,
        description="What becomes of the scores of a unit's matrices, as of `importance`.",
    )
    exponents: list[Exponent] = Field(
        default=[0.5, 1.0, 2.0],
        min_length=1,
        description="Powers that scores are raised to, as of `importance`.",
    )


Interval = Annotated[
    list[Annotated[float, Field(ge=0)]],
    Field(min_length=2, max_length=2),
    AfterValidator(recipe_checks.ascending),
]


Signed = Annotated[
    list[Annotated[float, Field(ge=-3, le=3)]],
    Field(min_length=2, max_length=2),
    AfterValidator(recipe_checks.ascending),
]


class AllocationSpace(Section):
    """How a trial may share out between layers, and between their sublayers, what is kept. With
    `target.layout: uniform` all layers are alike, and nothing of it may be given."""

    kinds: list[Allocation] = Field(
        default=["uniform", "influence", "angular"],
        min_length=1,
        description="What a layer's share depends on beside its depth, as `allocation` of "
        "`importance`.",
    )
    slope: Signed = Field(
        default=[-0.5, 0.5], description="[least, most], as of `importance`; [0, 0] for none."
    )
    bend: Signed = Field(
        default=[-0.5, 0.5], description="[least, most], as of `importance`; [0, 0] for none."
    )
    attention: Annotated[
        list[Annotated[float, Field(ge=0.25, le=4)]],
        Field(min_length=2, max_length=2),
        AfterValidator(recipe_checks.ascending),
    ] = Field(
        default=[0.5, 2.0],
        description="[least, most], as of `importance`, on a logarithmic scale; [1, 1] for none.",
    )


class SolverSpace(Section):
    """How a trial may pose the local problems of `tyr` and `uniform`: [least, most]."""

    first_order: Interval = Field(
        default=[0.0, 1.0], description="Weight of Týr's first-order term."
    )
    damping: Annotated[Interval, AfterValidator(recipe_checks.positive)] = Field(
        default=[0.001, 0.1], description="Damping, on a logarithmic scale."
    )


class AdaPrunerMethod(Section):
    """Choose by Bayesian optimisation what is calibrated on and what a unit's worth is measured
    by; then prune with what was found best."""

    reads: ClassVar[frozenset[str]] = frozenset({"calibration", "search"})
    #: What `faithful` obeys; it settles everything else as published.
    published: ClassVar[frozenset[str]] = frozenset(
        {"kind", "faithful", "trials", "sampler", "startup_trials", "study", "calibration"}
    )

    kind: Literal["adapruner"] = Field(description="How the model is made smaller.")
    inner: Literal["importance", "uniform", "tyr"] = Field(
        default="importance",
        description="What is tuned: `importance` by its metrics, `uniform` and `tyr` by how their "
        "local problems are posed. All are tuned by their calibration text.",
    )
    faithful: bool = Field(
        default=False,
        description="Prune as AdaPruner was published, as far as that is known: Taylor metrics of "
        "whole vectors and single elements, nothing refitted, the outermost layers left whole.",
    )
    trials: int = Field(default=40, ge=2, le=10_000, description="Settings that are tried.")
    sampler: Literal["tpe", "random"] = Field(
        default="tpe", description="How settings are proposed; `random` is the floor to beat."
    )
    startup_trials: int = Field(
        default=10, ge=1, description="Random trials before the sampler learns from them."
    )
    finalists: int = Field(
        default=3,
        ge=1,
        le=32,
        description="The best trials that are pruned in full, layer by layer along their "
        "calibration text; of these the best on the held-out text is taken. For `importance` with "
        "`refit` and for `uniform`: elsewhere a trial is what is built, or too far from it.",
    )
    objective: Literal["divergence", "perplexity"] = Field(
        default="divergence",
        description="What a trial is judged by on the text of `search`: how far the pruned model "
        "is from the dense one, or its own perplexity.",
    )
    study: Annotated[Path | None, Field(strict=False), AfterValidator(recipe_checks.study_file)] = (
        Field(
            default=None,
            description="An SQLite file that trials are kept in, by default one in the build's "
            "store. Builds that name the same file and differ in nothing that a trial depends on "
            "share their trials. Optuna's dashboard opens it.",
        )
    )
    calibration: CalibrationSpace = Field(
        default=CalibrationSpace(), description="The calibration text's part of the space."
    )
    metric: MetricSpace = Field(
        default=MetricSpace(), description="The metrics' part of the space, for `importance`."
    )
    allocation: AllocationSpace = Field(
        default=AllocationSpace(),
        description="The part of the space that shares out what is kept, for `importance`.",
    )
    solver: SolverSpace = Field(
        default=SolverSpace(), description="The solver's part, for `uniform` and `tyr`."
    )
    refit: bool = Field(
        default=True, description="As of `importance`; `uniform` and `tyr` always refit."
    )
    damping: Annotated[
        float, Field(gt=0, description="As of `importance`; of the others it is tuned.")
    ] = 0.01
    dense_target: DenseTarget = 0.5

    @field_validator("*")
    @classmethod
    def _is_read(cls, value: object, info: ValidationInfo) -> object:
        name = info.field_name or ""
        if name == "faithful" and value is False:
            return value
        if info.data.get("faithful", False) and name not in cls.published:
            raise refusal("is not read with `faithful: true`", "remove it")
        inner = info.data.get("inner", "importance")
        if (
            name in ("metric", "allocation", "refit", "damping", "faithful")
            and inner != "importance"
        ):
            raise refusal(f"is not read with `inner: {inner}`", "remove it")
        if name == "startup_trials" and info.data.get("sampler") == "random":
            raise refusal("is not read with `sampler: random`", "remove it")
        if name == "finalists" and inner == "tyr":
            raise refusal("is not read with `inner: tyr`", "remove it")
        finalists = cls.model_fields["finalists"].default
        if name == "refit" and info.data.get("finalists", finalists) != finalists:
            raise refusal("is false, so that method.finalists is not read", "remove finalists")
        if name == "dense_target" and inner == "importance" and info.data.get("refit") is False:
            raise refusal("is not read with `refit: false`", "remove it")
        if name == "solver" and inner == "importance":
            raise refusal("is read with `inner: uniform` and `inner: tyr` only", "remove it")
        return value


class MagnitudeMethod(Section):
    """The units of smallest weight norm go, nothing is refitted: the floor to beat."""

    reads: ClassVar[frozenset[str]] = frozenset()
    kind: Literal["magnitude"] = Field(description="How the model is made smaller.")


Method = Annotated[
    TyrMethod | UniformMethod | ImportanceMethod | AdaPrunerMethod | MagnitudeMethod,
    Field(discriminator="kind"),
]
