# SPDX-License-Identifier: Apache-2.0
"""A checkpoint folder whose files and config agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from prunec.compiler.model.census import check_tensors
from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.facts import Facts, facts_from_config
from prunec.compiler.model.headers import (
    check_inside,
    read_headers,
    read_json,
    refuse_other_weights,
)

ADAPTER = "adapter_config.json"


def facts_from_folder(folder: Path) -> Facts:
    """Facts of a checkpoint folder, its tensors' headers checked against its config.

    Raises ModelError where a file is missing or damaged, or the tensors are not those that the
    config calls for. No weight is read, unless a head is stored beside the embedding that it is
    tied to: the two are compared, up to where they differ.
    """
    check_no_adapter(folder)
    if not (folder / "config.json").exists():
        refuse_other_weights(folder)
    check_inside(folder, "config.json")
    facts = facts_from_config(read_json(folder / "config.json"))
    facts = replace(facts, tensors=read_headers(folder))
    check_tensors(facts, folder)
    return facts


def check_no_adapter(folder: Path) -> None:
    """ModelError for an adapter, or a model with one beside it: transformers would add it."""
    if (folder / ADAPTER).exists():
        raise ModelError(
            f"{folder} holds an adapter ({ADAPTER}), not a whole model",
            hint="merge it into its base model (peft: merge_and_unload), save that and give it; "
            f"if it is a left-over, remove {ADAPTER}",
        )
