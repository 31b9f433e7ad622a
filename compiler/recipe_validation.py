# SPDX-License-Identifier: Apache-2.0
"""What a recipe may have measured on the artefacts, and the gates on what is measured.

A gate stands beside its measurement, so that none can be asked for that measures nothing. Imported
through `prunec.compiler.recipe`, which is the whole contract.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from prunec.compiler import recipe_checks
from prunec.compiler.diagnostics import quoted
from prunec.compiler.recipe_checks import refusal
from prunec.compiler.recipe_sizes import Size
from prunec.compiler.recipe_sources import Bos, Name, Section, Source

Positive = Annotated[float, Field(gt=0)]
Runtime = Literal["hf", "onnx", "vllm"]
Backend = Literal["hf", "vllm"]
Metric = Annotated[str, Field(min_length=1)]
Folder = Annotated[
    Path,
    Field(strict=False),  # YAML has no paths
    AfterValidator(recipe_checks.existing_folder),
]


class TextCheck(Section):
    """Perplexity of both models on text that fitted nothing, and how far apart they are on it."""

    source: Source | None = Field(
        default=None,
        description="Where the text comes from; by default what calibration's source holds out.",
    )
    sequence_length: int = Field(default=256, ge=2, description="Tokens in one window of text.")
    tokens: Annotated[
        Annotated[int, Field(ge=1)] | Literal["all"], BeforeValidator(recipe_checks.number_or_all)
    ] = Field(
        default=65_536,
        validate_default=True,
        description="Tokens scored in all, in windows drawn from the text; `all`: the whole text "
        "from its beginning, window after window, as published perplexities are measured.",
    )
    bos: Bos = Field(
        default="auto",
        description="What every window begins with, as in `calibration.bos`; it is not scored.",
    )
    max_ratio: Positive | None = Field(
        default=None,
        description="Gate: pruned perplexity over dense perplexity may not exceed this.",
    )
    max_perplexity: Positive | None = Field(
        default=None, description="Gate: the pruned model's perplexity may not exceed this."
    )
    max_divergence: Positive | None = Field(
        default=None,
        description="Gate: the divergence of next-token distributions from the dense model's may "
        "not exceed this, in nats per token.",
    )

    @field_validator("tokens")
    @classmethod
    def _fills_a_window(cls, tokens: int | str, info: ValidationInfo) -> int | str:
        return tokens if isinstance(tokens, str) else recipe_checks.fills_a_window(tokens, info)


class PerplexityCheck(TextCheck):
    """Perplexity and divergence on text of the kind that the model is meant for."""


class TasksCheck(Section):
    """Tasks of lm-eval, both models on the same items."""

    names: list[Annotated[str, Field(min_length=1)]] = Field(
        min_length=1,
        description="Tasks or groups: of lm-eval, of `include`, or those that ship with prunec.",
    )
    include: list[Folder] = Field(
        default=[], description="Folders with tasks of your own, relative to the recipe."
    )
    backends: list[Backend] = Field(
        default=["hf"],
        min_length=1,
        description="What answers: `hf` is transformers, `vllm` vLLM's engine.",
    )
    few_shot: int | None = Field(
        default=None, ge=0, description="Examples before every item; by default what the task says."
    )
    limit: int | None = Field(
        default=None, ge=1, description="Items of each task, the first ones; by default all."
    )
    seed: int = Field(default=0, ge=0, description="Chooses few-shot examples.")
    chat_template: bool = Field(
        default=False, description="Whether items are put into the tokenizer's chat template."
    )
    batch_size: int = Field(default=8, ge=1, description="Requests at once.")
    max_length: int | None = Field(
        default=None, ge=1, description="Tokens of context; by default the model's own limit."
    )
    metric: Metric | dict[str, Metric] | None = Field(
        default=None,
        description="What is scored, `acc_norm` for example, or `NAME,FILTER`: for all names, or "
        "by name; by default each task's own first metric.",
    )
    min_recovery: Positive | None = Field(
        default=None,
        description="Gate on every name: the pruned model's score over the dense model's. A group "
        "is judged as one, by the items of all its tasks.",
    )
    min_recovery_above_chance: Positive | None = Field(
        default=None,
        description="Gate on every name: the same of what either model scores above guessing, "
        "(pruned - chance) / (dense - chance); of tasks with choices.",
    )
    max_drop: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default={}, description="Gates by name: dense score minus pruned score, at most."
    )
    min_score: dict[str, float] = Field(
        default={}, description="Gates by name: the pruned model's score, at least."
    )

    @field_validator("metric")
    @classmethod
    def _metric_of_named_tasks(
        cls, metric: str | dict[str, str] | None, info: ValidationInfo
    ) -> str | dict[str, str] | None:
        if isinstance(metric, dict):
            _check_named(metric, "names a metric of", info)
        return metric

    @field_validator("max_drop", "min_score")
    @classmethod
    def _gates_on_named_tasks(
        cls, gates: dict[str, float], info: ValidationInfo
    ) -> dict[str, float]:
        _check_named(gates, "is a gate on", info)
        return gates

    @property
    def metrics(self) -> dict[str, str]:
        """The metrics that are asked for, by name."""
        if isinstance(self.metric, str):
            return dict.fromkeys(self.names, self.metric)
        return dict(self.metric or {})


def _check_named(by_name: Iterable[str], what: str, info: ValidationInfo) -> None:
    """Refuses what is said of a task that is not among the names."""
    names = info.data.get("names", [])
    for name in by_name:
        if names and name not in names:
            raise refusal(
                f"{what} {quoted(name)}, which is not measured",
                "tasks.names has " + ", ".join(names),
                within=(name,),
            )


class Speedups(Section):
    """At least so many times as fast as the dense model, at every batch size."""

    prefill: Positive | None = Field(
        default=None, description="Reading a prompt, all of its tokens at once."
    )
    decode: Positive | None = Field(default=None, description="One new token after the other.")


class TokensPerSecond(Section):
    """At least so many tokens per second, over the whole batch, at every batch size."""

    prefill: Positive | None = Field(default=None, description="Of a prompt.")
    decode: Positive | None = Field(default=None, description="New ones.")


class SpeedCheck(Section):
    """Throughput and latency of both models, which take turns on the machine that builds."""

    runtimes: list[Runtime] = Field(
        min_length=1, description="What runs them; each needs the export of that kind."
    )
    batch_sizes: list[Annotated[int, Field(ge=1)]] = Field(
        default=[1], min_length=1, description="Sequences at once; every one is measured."
    )
    prompt_tokens: int = Field(default=128, ge=1, description="Tokens of every prompt.")
    new_tokens: int = Field(default=32, ge=2, description="Tokens made after it.")
    pairs: int = Field(
        default=9,
        ge=5,
        description="Turns of each model that are counted; from 8 on an interval holds 99 %.",
    )
    min_speedup: dict[Runtime, Speedups] = Field(
        default={}, description="Gates by runtime, relative to the dense model."
    )
    min_tokens_per_second: dict[Runtime, TokensPerSecond] = Field(
        default={}, description="Gates by runtime, absolute; on the machine that builds."
    )

    @field_validator("min_speedup", "min_tokens_per_second")
    @classmethod
    def _of_named_runtimes(cls, gates: dict[str, object], info: ValidationInfo) -> object:
        runtimes = info.data.get("runtimes", [])
        for name in gates:
            if runtimes and name not in runtimes:
                raise refusal(
                    f"is a gate on {name}, which is not measured",
                    f"add {name} to speed.runtimes, or remove the gate",
                    within=(name,),
                )
        return gates


class SizeCheck(Section):
    """What every artefact takes, on disk and in memory."""

    max_bytes: Size | None = Field(
        default=None, description="Gate: bytes of an artefact's files: a number, or `6GiB`."
    )
    max_bytes_ratio: Positive | None = Field(
        default=None,
        description="Gate: bytes of an artefact's files over those of the dense model in its form.",
    )
    max_resident_ratio: Positive | None = Field(
        default=None,
        description="Gate: memory that it takes to load the artefact, over the dense model's. vLLM "
        "reserves what it finds: there is no number, and the gate fails.",
    )


class ParityCheck(Section):
    """Every artefact in its runtime against the model in memory that it was written from."""

    prompts: int = Field(default=4, ge=1, le=64, description="Prompts, from the evaluation text.")
    new_tokens: int = Field(default=16, ge=1, le=512, description="Greedy tokens after each.")


class AbortIf(Section):
    """When a build is lost already, and is not gone on with."""

    divergence_above: Positive = Field(
        description="The best layout's divergence on the search text, in nats per token."
    )


class CompletionCheck(Section):
    """A greedy completion by both models, printed side by side; it gates nothing."""

    prompt: str = Field(min_length=1, description="What both models continue.")
    tokens: int = Field(default=48, ge=1, le=2048, description="Tokens to generate.")


class Validation(Section):
    """What is measured on the artefacts that were written, and what it must come to."""

    perplexity: PerplexityCheck | None = Field(
        default=None,
        description="Perplexity and divergence on text of the kind that the model is meant for.",
    )
    elsewhere: dict[Name, TextCheck] = Field(
        default={},
        description="The same on other texts, by a name of yours: what the model was not fitted to "
        "is what it forgets first.",
    )
    tasks: TasksCheck | None = Field(default=None, description="Tasks of lm-eval.")
    speed: SpeedCheck | None = Field(default=None, description="Throughput and latency.")
    size: SizeCheck | None = Field(default=None, description="Bytes on disk and in memory.")
    parity: ParityCheck | None = Field(
        default=None, description="Whether every artefact says the same; it must."
    )
    completion: CompletionCheck | None = Field(
        default=None, description="A completion, dense beside pruned."
    )
    on_inconclusive: Literal["fail", "pass"] = Field(
        default="fail",
        description="What becomes of a gate whose threshold lies within the measurement's noise.",
    )
    abort_if: AbortIf | None = Field(
        default=None, description="Stops a build whose search has shown it to be lost."
    )

    @field_validator("parity")
    @classmethod
    def _has_prompts(cls, parity: ParityCheck | None, info: ValidationInfo) -> ParityCheck | None:
        if parity is not None and info.data.get("perplexity") is None:
            raise refusal(
                "takes its prompts from the text of validate.perplexity, which is missing",
                "add validate.perplexity",
            )
        return parity
