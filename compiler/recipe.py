# SPDX-License-Identifier: Apache-2.0
"""What a recipe may say: the typed contract between the user and the compiler.

Every field that is accepted here is obeyed by a build; a section that the chosen method does not
read is refused. A validated recipe is settled: paths are absolute, globs are expanded, every
`python_stdlib` source names its split, and a method that searches has a `search` with a seed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from prunec.compiler import recipe_checks
from prunec.compiler.diagnostics import shown
from prunec.compiler.recipe_checks import refusal
from prunec.compiler.recipe_export import Export, HfExport, OnnxExport, VllmExport
from prunec.compiler.recipe_methods import (
    AdaPrunerMethod,
    AllocationSpace,
    ImportanceMethod,
    MagnitudeMethod,
    Method,
    TyrMethod,
    UniformMethod,
)
from prunec.compiler.recipe_recover import BlockwiseRecovery, LoraRecovery, Recover
from prunec.compiler.recipe_resources import Resources
from prunec.compiler.recipe_sources import (
    Bos,
    ChatSource,
    DocumentsSource,
    FittingSource,
    HubSource,
    JsonlSource,
    MixedSource,
    PythonStdlibSource,
    Section,
    SelfSource,
    Source,
    Split,
    TextSource,
    WholeWindows,
)
from prunec.compiler.recipe_target import Speedup, Target
from prunec.compiler.recipe_texts import Reading, judging_source, keep_apart, with_split
from prunec.compiler.recipe_validation import (
    AbortIf,
    CompletionCheck,
    ParityCheck,
    PerplexityCheck,
    SizeCheck,
    SpeedCheck,
    TasksCheck,
    TextCheck,
    Validation,
)

__all__ = [
    "AbortIf",
    "AdaPrunerMethod",
    "AllocationSpace",
    "BlockwiseRecovery",
    "Bos",
    "Calibration",
    "ChatSource",
    "CompletionCheck",
    "DocumentsSource",
    "Export",
    "FittingSource",
    "HfExport",
    "HubSource",
    "ImportanceMethod",
    "JsonlSource",
    "LoraRecovery",
    "MagnitudeMethod",
    "Method",
    "MixedSource",
    "ModelSpec",
    "OnnxExport",
    "ParityCheck",
    "PerplexityCheck",
    "PythonStdlibSource",
    "Recipe",
    "Recover",
    "Resources",
    "Search",
    "SearchBudget",
    "SelfSource",
    "SizeCheck",
    "Source",
    "SpeedCheck",
    "Speedup",
    "Split",
    "Target",
    "TasksCheck",
    "TextCheck",
    "TextSource",
    "TyrMethod",
    "UniformMethod",
    "Validation",
    "VllmExport",
    "recipe_schema",
    "render_schema",
]


# --- Model ----------------------------------------------------------------------------------------


HubConfig = Annotated[
    Path,
    Field(strict=False),  # YAML has no paths
    AfterValidator(recipe_checks.existing_file),
    BeforeValidator(recipe_checks.hub_only),
]


class ModelSpec(Section):
    """The dense model that a build starts from."""

    source: Annotated[str, AfterValidator(recipe_checks.model_source)] = Field(
        min_length=1,
        description="A folder with a checkpoint, relative to the recipe, or the id of a model on "
        "the Hugging Face hub (`org/name`). A folder that exists comes first.",
    )
    revision: Annotated[str | None, BeforeValidator(recipe_checks.hub_only)] = Field(
        default=None,
        min_length=1,
        description="Branch, tag or commit of the hub's model. A folder has none.",
    )
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        default="bfloat16",
        description="The dtype of the weights that are written, and of the forward passes.",
    )
    config: HubConfig | None = Field(
        default=None,
        description="A copy of the hub model's config.json, so that `prunec plan` needs neither "
        "network nor weights; a build checks that the model agrees with it.",
    )

    @property
    def folder(self) -> Path | None:
        """The folder of the checkpoint, or None when `source` is a hub id."""
        path = Path(self.source)
        return path if path.is_absolute() else None


# --- Data, search and validation ------------------------------------------------------------------


class Calibration(Section):
    """The text that the weights are refitted on."""

    source: FittingSource = Field(description="Where the text comes from.")
    sequence_length: int = Field(default=2048, ge=2, description="Tokens in one window of text.")
    tokens: WholeWindows = Field(
        default=131_072, ge=1, validate_default=True, description="Tokens read in all."
    )
    seed: int = Field(default=0, ge=0, description="Chooses the windows.")
    bos: Bos = Field(
        default="auto",
        description="What every window begins with: `auto`, what the model's own tokenizer puts "
        "before a text; `always`, its BOS token even where it would not; `never`, nothing.",
    )


class SearchBudget(Section):
    """What the search may cost: tokens, or time."""

    minutes: float | None = Field(
        default=None,
        gt=0,
        description="Minutes that comparing candidates may take, instead of `token_forwards`. Two "
        "builds of the same recipe then differ.",
    )
    token_forwards: Annotated[
        int | None, Field(ge=1), AfterValidator(recipe_checks.unless_minutes)
    ] = Field(
        default=None,
        validate_default=True,
        description="Tokens pushed through the whole model, over all candidates; 2,000,000 where "
        "neither is given.",
    )


class Search(Section):
    """How layouts are compared, and for how long."""

    source: FittingSource | None = Field(
        default=None,
        description="Text that candidates are scored on. By default calibration's source, "
        "documents that calibration does not read (for `python_stdlib` its search split).",
    )
    tokens: int = Field(
        default=16_384, ge=1, description="Size of the last selection stage, in tokens."
    )
    searcher: Literal["surrogate", "evolutionary", "level_relaxation", "random"] = Field(
        default="surrogate",
        description="`surrogate` learns what every sublayer costs and solves for the layout; "
        "`evolutionary` mutates the best so far, as Týr does; `level_relaxation` descends by "
        "gradients on mixtures of sizes, then rounds; `random` is the floor to beat.",
    )
    budget: SearchBudget = Field(default=SearchBudget(), description="When the search ends.")
    seed: int | None = Field(
        default=None,
        ge=0,
        description="Seeds the search and chooses its windows; by default calibration's seed.",
    )
    bos: Bos | None = Field(
        default=None, description="What windows begin with; by default as calibration's."
    )


class Recipe(Section):
    """A recipe: what prunec is to make of which model, and how that is judged."""

    schema_version: Literal[1] = Field(description="The version of the recipe's shape.")
    model: ModelSpec = Field(description="What is made smaller.")
    method: Method = Field(description="How the model is made smaller.")
    target: Target = Field(description="What the smaller model must be like.")
    calibration: Calibration | None = Field(
        default=None,
        validate_default=True,
        description="The text that the weights are refitted on, or units are scored on. "
        "`magnitude` reads none, and neither does `importance` with `refit: false` and metrics of "
        "the weights alone.",
    )
    search: Search | None = Field(
        default=None,
        validate_default=True,
        description="How `tyr` compares layouts, and for how long; the text that `adapruner` "
        "judges trials on. Other methods do not search.",
    )
    recover: Recover | None = Field(
        default=None, description="How the pruned model is trained back, before it is written."
    )
    export: list[Export] = Field(
        min_length=1, description="The formats that are written, at most one of each kind."
    )
    validation: Validation | None = Field(
        default=None,
        alias="validate",
        description="What is measured on the artefacts that were written.",
    )
    resources: Resources = Field(
        default=Resources(), description="What a build may take of the machine that it runs on."
    )

    @field_validator("schema_version", mode="before")
    @classmethod
    def _whole_number(cls, value: object) -> object:
        if isinstance(value, bool | float):  # they would equal the literal 1
            raise refusal(f"is {shown(value)}; it must be the whole number 1")
        return value

    @field_validator("calibration")
    @classmethod
    def _settle_calibration(
        cls, calibration: Calibration | None, info: ValidationInfo
    ) -> Calibration | None:
        _check_read("calibration", calibration, info, required=True)
        if calibration is None:
            return None
        source = with_split(calibration.source, "calibration")
        return calibration.model_copy(update={"source": source})

    @field_validator("search")
    @classmethod
    def _settle_search(cls, search: Search | None, info: ValidationInfo) -> Search | None:
        _check_read("search", search, info, required=False)
        calibration: Calibration | None = info.data.get("calibration")
        method: Method | None = info.data.get("method")
        if calibration is None or method is None or "search" not in method.reads:
            return search
        _check_mixture(method, calibration)
        search = search or Search()
        if isinstance(method, AdaPrunerMethod) and method.inner != "tyr":
            for name in ("searcher", "budget"):
                if name in search.model_fields_set:
                    raise refusal(
                        f"is not read by method `adapruner` with `inner: {method.inner}`",
                        "remove it; method.trials says how long is searched",
                        within=(name,),
                    )
        _check_first_step(method, search)
        source = search.source or with_split(calibration.source, None, anew=True)
        search = search.model_copy(update={"source": with_split(source, "search")})
        if search.tokens < calibration.sequence_length:
            raise refusal(
                f"is {search.tokens}; it must be at least calibration.sequence_length "
                f"({calibration.sequence_length})",
                within=("tokens",),
            )
        keep_apart(_fitted("calibration", calibration), _fitted("search", search))
        seed = calibration.seed if search.seed is None else search.seed
        return search.model_copy(update={"seed": seed, "bos": search.bos or calibration.bos})

    @field_validator("recover")
    @classmethod
    def _settle_recover(cls, recover: Recover | None, info: ValidationInfo) -> Recover | None:
        if recover is None or "calibration" not in info.data:
            return recover
        calibration: Calibration | None = info.data["calibration"]
        source, length = recover.source, recover.sequence_length
        if calibration is None and (source is None or length is None):
            missing = "source" if source is None else "sequence_length"
            raise refusal(
                f"has no {missing}, and there is no calibration whose it could take",
                f"give recover.{missing}",
            )
        if calibration is not None:
            source, length = source or calibration.source, length or calibration.sequence_length
        assert source is not None
        held_out = recover.held_out or with_split(source, None, anew=True)
        settled = {
            "source": with_split(source, "calibration"),
            "sequence_length": length,
            "held_out": with_split(held_out, "search"),
            "bos": recover.bos or (calibration.bos if calibration else "auto"),
        }
        recover = recover.model_copy(update=settled)
        held_out_text = _stopping(recover, may_share=True)
        keep_apart(_fitted("recover", recover), held_out_text)
        for name in ("calibration", "search"):
            if section := info.data.get(name):
                keep_apart(_fitted(name, section), held_out_text)
        for name in ("tokens", "held_out_tokens", "batch_tokens"):
            given = name != "batch_tokens" or name in recover.model_fields_set
            if given and getattr(recover, name) < (recover.sequence_length or 0):
                raise refusal(
                    f"is {getattr(recover, name)}; it must be at least one window of text "
                    f"({recover.sequence_length} tokens)",
                    within=(name,),
                )
        return recover

    @field_validator("export")
    @classmethod
    def _one_of_each(cls, export: list[Export]) -> list[Export]:
        kinds = [item.kind for item in export]
        for index, kind in enumerate(kinds):
            if kind in kinds[:index]:
                raise refusal(
                    f"is a second `{kind}` export; there may be one of each kind",
                    within=(index,),
                )
        return export

    @field_validator("validation")
    @classmethod
    def _settle_validation(
        cls, validation: Validation | None, info: ValidationInfo
    ) -> Validation | None:
        if validation is None or "calibration" not in info.data:  # it was refused itself
            return validation
        calibration: Calibration | None = info.data.get("calibration")
        held_out = judging_source(calibration.source if calibration else None)
        perplexity = validation.perplexity
        if perplexity:
            perplexity = _judging(perplexity, held_out, ("perplexity",))
        elsewhere = {
            name: _judging(check, held_out, ("elsewhere", name))
            for name, check in validation.elsewhere.items()
        }
        judging = [
            Reading(("validate", "elsewhere", name, "source"), "evaluation", check.source)
            for name, check in elsewhere.items()
        ]
        if perplexity:
            place = ("validate", "perplexity", "source")
            judging.insert(0, Reading(place, "evaluation", perplexity.source))
        sections = ((name, info.data.get(name)) for name in ("calibration", "search", "recover"))
        fitted = [_fitted(name, section) for name, section in sections if section]
        if recover := info.data.get("recover"):
            fitted.append(_stopping(recover))
        for earlier in fitted:
            for text in judging:
                keep_apart(earlier, text)
        method: Method | None = info.data.get("method")
        searches = isinstance(method, TyrMethod) or (
            isinstance(method, AdaPrunerMethod) and method.inner == "tyr"
        )
        if validation.abort_if and not searches:
            raise refusal(
                "is read after a search, and the method does not search",
                "remove it",
                within=("abort_if",),
            )
        _check_runnable(validation, info.data.get("export") or [])
        return validation.model_copy(update={"perplexity": perplexity, "elsewhere": elsewhere})


Judging = TypeVar("Judging", bound=TextCheck)


def _judging(check: Judging, default: FittingSource | None, place: tuple[str, ...]) -> Judging:
    """The check with its source settled. `default`: what it reads where it names none."""
    source = check.source or default
    if source is None:
        raise refusal(
            "has no source, and calibration.source holds nothing out that it could read",
            "give it a source, or calibration.source a holdout",
            within=place,
        )
    return check.model_copy(update={"source": with_split(source, "evaluation")})


def _fitted(name: str, section: Calibration | Search | Recover) -> Reading:
    home: Split = "search" if name == "search" else "calibration"
    return Reading((name, "source"), home, section.source, may_share=name == "search")


def _stopping(recover: Recover, *, may_share: bool = False) -> Reading:
    """The text that says when to stop a recovery, which nothing is trained on."""
    return Reading(("recover", "held_out"), "search", recover.held_out, may_share=may_share)


def _check_read(name: str, section: object, info: ValidationInfo, *, required: bool) -> None:
    """Refuses a section that the method does not read, and misses one that it cannot do without."""
    method: Method | None = info.data.get("method")
    if method is None:  # it was refused itself
        return
    if section is not None and name not in method.reads:
        scored = method.kind == "importance" and name == "calibration"
        why = " where it scores the weights alone and refits nothing" if scored else ""
        raise refusal(f"is not read by method `{method.kind}`{why}", f"remove the section `{name}`")
    if section is None and required and name in method.reads:
        raise refusal(
            f"is missing; method `{method.kind}` needs it",
            f"for example {name}: {{source: {{kind: text, files: [mine/*.txt]}}}}",
        )


def _check_first_step(method: Method, search: Search) -> None:
    """Refuses a step for layouts drawn at random, unless a search starts from another centre."""
    stepless = isinstance(method, TyrMethod) and method.centre is None
    if stepless and search.searcher == "random" and "first_step" in method.model_fields_set:
        raise refusal(
            "is not read with `searcher: random`, which draws every layout anew",
            "remove it",
            at=("method", "first_step"),
        )


def _check_mixture(method: Method, calibration: Calibration) -> None:
    """Refuses to tune the weights of a mixture where there is none."""
    tuned = isinstance(method, AdaPrunerMethod) and "mixture" in method.calibration.model_fields_set
    if tuned and not isinstance(calibration.source, MixedSource):
        raise refusal(
            "is not read: calibration.source is no mixture",
            "remove it",
            at=("method", "calibration", "mixture"),
        )


def _check_runnable(validation: Validation, exports: list[Export]) -> None:
    """Refuses what would be measured on an export that is not made."""
    kinds = [export.kind for export in exports]
    speed, tasks = validation.speed, validation.tasks
    for index, runtime in enumerate(speed.runtimes if speed else ()):
        if runtime not in kinds:
            raise refusal(
                f"is {runtime}, and there is no such export",
                f"add {{kind: {runtime}}} to export",
                within=("speed", "runtimes", index),
            )
    for index, backend in enumerate(tasks.backends if tasks else ()):
        if backend == "vllm" and "vllm" not in kinds:
            raise refusal(
                "is vllm, and there is no such export",
                "add {kind: vllm} to export",
                within=("tasks", "backends", index),
            )


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe, in draft 7, which editors' YAML language server reads."""
    schema = Recipe.model_json_schema(ref_template="#/definitions/{model}")
    schema["definitions"] = schema.pop("$defs")
    return {"$schema": "http://json-schema.org/draft-07/schema#", **_draft_7(schema)}


def _draft_7(node: Any) -> Any:
    if isinstance(node, list):
        return [_draft_7(item) for item in node]
    if not isinstance(node, dict):
        return node
    # `discriminator` is OpenAPI's; and draft 7 ignores whatever stands beside a `$ref`.
    rest = {key: _draft_7(value) for key, value in node.items() if key != "discriminator"}
    if "$ref" in rest and len(rest) > 1:
        rest["allOf"] = [{"$ref": rest.pop("$ref")}]
    return rest


def render_schema() -> str:
    """The schema as it is committed in `recipes/recipe.schema.json`."""
    return json.dumps(recipe_schema(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
