# SPDX-License-Identifier: Apache-2.0
"""How a recipe may ask for a pruned model to be trained back: what is trained, on what, how long.

Imported through `prunec.compiler.recipe`, which is the whole contract.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from prunec.compiler.recipe_checks import refusal
from prunec.compiler.recipe_sources import Bos, FittingSource, Section, Source


class _Training(Section):
    """What both kinds of recovery have in common."""

    source: FittingSource | None = Field(
        default=None, description="The text to train on; by default calibration's source."
    )
    tokens: int = Field(
        default=1_048_576, ge=1, description="Tokens of text that are read, each once an epoch."
    )
    epochs: int = Field(default=1, ge=1, le=100, description="Times that the text is gone through.")
    sequence_length: int | None = Field(
        default=None,
        ge=2,
        description="Tokens in one window of text; by default calibration's.",
    )
    held_out: Source | None = Field(
        default=None,
        description="Text that decides when to stop and whether to keep the result. By default of "
        "the training text's source, documents that nothing else of the build reads (for "
        "`python_stdlib` of its search split).",
    )
    held_out_tokens: int = Field(default=16_384, ge=1, description="Tokens of that text.")
    batch_tokens: int = Field(
        default=2_048, ge=1, description="Tokens of one optimiser step; one window at least."
    )
    seed: int = Field(default=0, ge=0, description="Chooses windows and their order.")
    bos: Bos | None = Field(
        default=None,
        description="What windows of both texts begin with; by default as calibration's.",
    )


class LoraRecovery(_Training):
    """Low-rank adapters on every projection, trained, then merged into the weights."""

    kind: Literal["lora"] = Field(description="What is trained.")
    labels: float = Field(
        default=0.0, ge=0, description="Weight of the text's own next token in the loss."
    )
    divergence: float = Field(
        default=1.0,
        ge=0,
        description="Weight of the divergence from the dense model's next-token distributions.",
    )
    hidden: float = Field(
        default=0.0,
        validate_default=True,
        ge=0,
        description="Weight of the mean squared distance of every layer's hidden states from the "
        "dense model's, over the mean square of those.",
    )
    rank: int = Field(default=32, ge=1, le=1024, description="Rank of the adapters, on average.")
    ranks: Literal["uniform", "importance"] = Field(
        default="uniform",
        description="`importance`: more rank where a layer turns the hidden states further, as "
        "CFSP's IG-LoRA.",
    )
    alpha: float = Field(
        default=32.0, gt=0, description="What adapters are scaled by, over their rank."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout before the adapters.")
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="Of AdamW, at its highest; by default 3e-3 for a hidden size of 256 and less "
        "for wider models, 3.8e-4 at 4096.",
    )
    warmup: float = Field(
        default=0.03, ge=0, lt=1, description="Share of the steps that it rises in; then a cosine."
    )
    weight_decay: float = Field(default=0.0, ge=0, description="Of AdamW.")
    patience: int = Field(
        default=5,
        ge=1,
        description="Looks at the held-out text without a gain before training stops.",
    )
    looks: int = Field(
        default=20, ge=1, description="How often, over the whole training, that text is looked at."
    )
    checkpointing: bool = Field(
        default=False, description="Compute activations twice, to hold fewer of them."
    )

    @field_validator("hidden")
    @classmethod
    def _some_loss(cls, hidden: float, info: object) -> float:
        data = getattr(info, "data", {})
        if not hidden and not data.get("labels", 1) and not data.get("divergence", 1):
            raise refusal("is 0, and so are labels and divergence", "give one of them a weight")
        return hidden


class BlockwiseRecovery(_Training):
    """Each layer's weights trained to give the dense layer's output, one layer in memory."""

    kind: Literal["blockwise"] = Field(description="What is trained.")
    tokens: int = Field(
        default=262_144, ge=1, description="Tokens of text that are read, each once an epoch."
    )
    learning_rate: float = Field(
        default=2e-3,
        gt=0,
        description="Of Adam, falling as a cosine. What suits a model of millions of parameters; "
        "lower for billions.",
    )
    batch_tokens: int = Field(
        default=512, ge=1, description="Tokens of one optimiser step; one window at least."
    )


Recover = Annotated[LoraRecovery | BlockwiseRecovery, Field(discriminator="kind")]
