# SPDX-License-Identifier: Apache-2.0
"""transformers' classes for models whose layers differ in shape: one file a family."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from prunec.compiler.model.families import FAMILIES

PREFIX = "prunec_"


@dataclass(frozen=True)
class Classes:
    """Config, model and causal language model of a family; `files` are to lie beside weights."""

    config: Any
    model: Any
    causal_lm: Any
    module: str
    files: tuple[Path, ...]


@cache
def classes_of(model_type: str) -> Classes:
    """The classes of a family, by the stock `model_type`."""
    name = f"modeling_{PREFIX}{model_type}"
    module = import_module(f"{__name__}.{name}")
    found: dict[str, Any] = {
        ours.__name__: ours for ours in vars(module).values() if isinstance(ours, type)
    }
    config = next(c for c in found.values() if vars(c).get("model_type") == PREFIX + model_type)
    causal_lm = found[f"Prunec{FAMILIES[model_type].architecture}"]
    here = Path(__file__).parent
    files = (here / "modeling_prunec.py", here / f"{name}.py")
    return Classes(config, causal_lm.per_layer_model, causal_lm, name, files)


def register() -> None:
    """Make transformers' Auto classes know our models; may be called any number of times."""
    for model_type in FAMILIES:
        ours = classes_of(model_type)
        AutoConfig.register(ours.config.model_type, ours.config, exist_ok=True)
        AutoModel.register(ours.config, ours.model, exist_ok=True)
        AutoModelForCausalLM.register(ours.config, ours.causal_lm, exist_ok=True)
