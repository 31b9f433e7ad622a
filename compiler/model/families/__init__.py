# SPDX-License-Identifier: Apache-2.0
"""Families of architectures, one file each. Outside this package and `modeling`, no code knows a
family's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.families.family import Family as Family
from prunec.compiler.model.families.family import Rows as Rows
from prunec.compiler.model.families.gemma2 import GEMMA2
from prunec.compiler.model.families.gemma3 import GEMMA3
from prunec.compiler.model.families.llama import LLAMA
from prunec.compiler.model.families.mistral import MISTRAL
from prunec.compiler.model.families.olmo2 import OLMO2
from prunec.compiler.model.families.phi3 import PHI3
from prunec.compiler.model.families.qwen2 import QWEN2
from prunec.compiler.model.families.qwen3 import QWEN3

FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (LLAMA, MISTRAL, QWEN2, QWEN3, PHI3, GEMMA2, GEMMA3, OLMO2)
}


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config.json; ModelError for one that prunec cannot prune."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        hint = f"supported: {', '.join(sorted(FAMILIES))}"
        inner = config.get("text_config")
        part = inner.get("model_type") if isinstance(inner, Mapping) else None
        if isinstance(part, str) and part in FAMILIES:
            hint += (
                f"; its language model is {part}: save that alone, with a config.json of its own"
            )
        raise ModelError(f"model type {repr(model_type)[:80]} is not supported", hint=hint)
    return FAMILIES[model_type]
