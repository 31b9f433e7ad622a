# SPDX-License-Identifier: Apache-2.0
"""Where a recipe's text may come from: the sources that calibration, search and validation share.

Imported through `prunec.compiler.recipe`, which is the whole contract.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from prunec.compiler import recipe_checks


class Section(BaseModel):
    """What all sections share: no unknown keys, no coercion, no change after validation."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


Split = Literal["calibration", "search", "evaluation"]
Bos = Literal["auto", "always", "never"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=40)]
WholeWindows = Annotated[int, AfterValidator(recipe_checks.fills_a_window)]
_FILES = (
    "UTF-8 files or globs (`**` enters folders), relative to the recipe; gzip, bzip2, xz and zstd "
    "are unpacked."
)
Files = Annotated[
    list[str],
    Field(min_length=1, description=_FILES),
    AfterValidator(recipe_checks.text_files),
]


class PythonStdlibSource(Section):
    """The Python standard library of the interpreter that runs the build; needs no download."""

    kind: Literal["python_stdlib"] = Field(description="Where the text comes from.")
    split: Split | None = Field(
        default=None,
        description="Which of three disjoint sets of modules is read; by default the one named "
        "after the section that the source stands in (evaluation under `validate`).",
    )


class DocumentsSource(Section):
    """Documents of the user's own, some of which may be kept for judging."""

    holdout: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="About this share of the documents is kept for judging: text that is fitted to "
        "never holds them, a text under `validate` holds nothing else.",
    )


class PlainSource(DocumentsSource):
    """Documents that are text as they stand."""

    join: str | None = Field(
        default=None,
        description="What stands between documents instead of the token that ends a text. "
        "Published perplexities join WikiText's rows by two newlines.",
    )


class TextSource(PlainSource):
    """Plain text files, each one document; a long one is drawn from by its parts."""

    kind: Literal["text"] = Field(description="Where the text comes from.")
    files: Files


class JsonlSource(PlainSource):
    """Rows of JSON Lines, JSON arrays, Parquet or what `save_to_disk` of the datasets library has
    written, whatever the files are called; one document a row."""

    kind: Literal["jsonl"] = Field(description="Where the text comes from.")
    files: Files
    field: str = Field(
        default="text", min_length=1, description="The key whose value is the document's text."
    )


class HubSource(PlainSource):
    """A dataset of the Hugging Face hub, read through the datasets library, streaming."""

    kind: Literal["hub"] = Field(description="Where the text comes from.")
    dataset: Annotated[str, AfterValidator(recipe_checks.dataset_id)] = Field(
        min_length=1, description="The dataset's id, such as `org/name`."
    )
    config: str | None = Field(
        default=None, min_length=1, description="The dataset's configuration, where it has several."
    )
    split: str = Field(default="train", min_length=1, description="The dataset's split.")
    field: str = Field(
        default="text", min_length=1, description="The column that holds the document's text."
    )
    revision: str | None = Field(
        default=None, min_length=1, description="Branch, tag or commit of the dataset."
    )


class ChatSource(DocumentsSource):
    """Conversations, one a row of files such as `jsonl` reads or of a dataset of the hub, made text
    by the model's chat template, which also ends them."""

    kind: Literal["chat"] = Field(description="Where the text comes from.")
    files: Files | None = Field(default=None, description=_FILES)
    dataset: Annotated[str | None, AfterValidator(recipe_checks.files_or_dataset)] = Field(
        default=None,
        min_length=1,
        validate_default=True,
        description="The id of a dataset of the hub, such as `org/name`, instead of `files`.",
    )
    config: Annotated[str | None, AfterValidator(recipe_checks.of_a_dataset)] = Field(
        default=None, min_length=1, description="The dataset's configuration, where it has several."
    )
    split: Annotated[str | None, AfterValidator(recipe_checks.of_a_dataset)] = Field(
        default=None, min_length=1, description="The dataset's split, by default `train`."
    )
    revision: Annotated[str | None, AfterValidator(recipe_checks.of_a_dataset)] = Field(
        default=None, min_length=1, description="Branch, tag or commit of the dataset."
    )
    field: str | None = Field(
        default=None,
        min_length=1,
        description="The key of a row's messages. By default `messages` or `conversations`; where "
        "a row has neither, `prompt` and `completion`, or `instruction` (with `input`) and "
        "`output`, become what a user says and what is answered.",
    )


Source = Annotated[
    PythonStdlibSource | TextSource | JsonlSource | ChatSource | HubSource,
    Field(discriminator="kind"),
]


class SelfSource(Section):
    """Text that the dense model itself writes, for users who have none: of a base model a sample
    of what it was trained on, of one tuned to answer whatever it says to an empty prompt."""

    kind: Literal["self"] = Field(description="Where the text comes from.")
    temperature: float = Field(
        default=1.0, gt=0, le=4, description="What logits are divided by before sampling."
    )


class MixedPart(Section):
    """One of the texts of a mixture."""

    source: Annotated[
        PythonStdlibSource | TextSource | JsonlSource | ChatSource | HubSource | SelfSource,
        Field(discriminator="kind"),
    ] = Field(description="Where its text comes from.")
    weight: float = Field(
        default=1.0, ge=0, description="Its share of the tokens, relative to the other parts'."
    )


class MixedSource(Section):
    """Several texts by names of yours, each with its share of the windows."""

    kind: Literal["mix"] = Field(description="Where the text comes from.")
    parts: Annotated[dict[Name, MixedPart], AfterValidator(recipe_checks.some_weight)] = Field(
        min_length=2, description="The texts, by name."
    )


#: What may be fitted to. Text that judges is never a mixture and never the model's own.
FittingSource = Annotated[
    PythonStdlibSource
    | TextSource
    | JsonlSource
    | ChatSource
    | HubSource
    | SelfSource
    | MixedSource,
    Field(discriminator="kind"),
]
