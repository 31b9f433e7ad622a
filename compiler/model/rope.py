# SPDX-License-Identifier: Apache-2.0
"""Rotary embeddings as a config.json gives them, in today's words or in older ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.families import Family


def rope_sections(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """All of a config's rope parameters: of the model, and of single kinds of layers."""
    for key in ("rope_parameters", "rope_scaling"):
        stack = [config.get(key)]
        while stack:
            section = stack.pop()
            if isinstance(section, Mapping):
                yield section
                stack += section.values()


def rope_type(section: Mapping[str, Any]) -> Any:
    """What a section calls its kind of rope; `default` where it does not say."""
    return section.get("rope_type", section.get("type", "default"))


def check_rope(config: Mapping[str, Any], family: Family) -> None:
    """ModelError for rotary embeddings that transformers' class of the family does not compute."""
    for section in rope_sections(config):
        if (kind := rope_type(section)) not in family.rope_types:
            raise ModelError(
                f"config.json has rope type {repr(kind)[:60]}, which transformers does not know "
                f"for {family.model_type}; it knows {', '.join(family.rope_types)}",
                hint="longrope is what su is called today" if kind == "su" else None,
            )
    for section in (config, *rope_sections(config)):
        part = section.get("partial_rotary_factor")
        if not family.rotates_parts and part not in (None, 1):
            raise ModelError(
                f"config.json has partial_rotary_factor: {repr(part)[:60]}; transformers rotates "
                f"whole heads of {family.model_type}, and other tools do not"
            )
