# SPDX-License-Identifier: Apache-2.0
"""Hugging Face folders, written and read back.

Importing this module lets transformers load per-layer ones without remote code.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from prunec.compiler.model.checkpoint import write_checkpoint
from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.facts import Facts
from prunec.compiler.model.headers import read_headers, shard_names
from prunec.compiler.model.layout import (
    LayerSpec,
    Layout,
    is_uniform,
    prunable_parameters,
    tensor_shapes,
)
from prunec.compiler.model.modeling import classes_of, register
from prunec.compiler.model.tensor_file import TensorSpec
from prunec.exporters.artefact import Provenance, Written
from prunec.exporters.card import Card, loading_in_transformers, model_card
from prunec.exporters.hf_rules import LayoutKind, carried_files
from prunec.validators.manifest import CARD

register()

# Of the source's config.json: where it lay, what it was stored as, code that is not carried along,
# kernels that another machine may not have.
_DROPPED_KEYS = (
    "_name_or_path",
    "torch_dtype",
    "auto_map",
    "transformers_version",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_autoset",
)

_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}

_Shapes = dict[str, tuple[int, ...]]


def export(
    destination: Path,
    source: Path,
    facts: Facts,
    layout: Layout,
    layout_kind: LayoutKind,
    tensors: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    max_shard_bytes: int,
    provenance: Provenance,
    stored: Layout | None = None,
) -> None:
    """Write a pruned model into an existing, empty folder.

    `tensors` yields all of its tensors by full name; one is held at a time. Layers keep their
    indices: an emptied one has no tensors. `stored` is the layout of these tensors where it is
    another than the model's own, since zeros were added.
    Raises ModelError if the layout cannot be said in `layout_kind`, the tensors are not of the
    layout, or the source has no tokenizer.
    """
    if layout_kind == "uniform" and not is_uniform(layout):
        raise ModelError("layers of different shapes cannot be written as a uniform model")
    for name in carried_files(source):
        (destination / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, destination / name)
    shapes = tensor_shapes(facts, stored or layout)
    specs = {name: TensorSpec(dtype, shape) for name, shape in shapes.items()}
    write_checkpoint(destination, specs, tensors, max_shard_bytes)
    _write_json(destination / "config.json", model_config(facts, layout, layout_kind, dtype))
    if layout_kind == "per_layer":
        for file in classes_of(facts.family.model_type).files:
            shutil.copyfile(file, destination / file.name)
    described = card(source, facts, layout, layout_kind, dtype, provenance)
    (destination / CARD).write_text(described.render(), encoding="utf-8")
    (destination / "prunec").mkdir()
    recipe = destination / "prunec" / "recipe.yaml"
    recipe.write_text(provenance.recipe_text, encoding="utf-8")
    _write_json(destination / "prunec" / "plan.json", provenance.plan)


def card(
    source: Path,
    facts: Facts,
    layout: Layout,
    layout_kind: LayoutKind,
    dtype: torch.dtype,
    provenance: Provenance,
    **options: Any,
) -> Card:
    """What the folder tells of itself; `options` change nothing of it."""
    loading = loading_in_transformers(facts, layout, layout_kind)
    return model_card(source, facts, layout, dtype.itemsize, provenance, loading)


def model_config(
    facts: Facts, layout: Layout, layout_kind: LayoutKind, dtype: torch.dtype
) -> dict[str, Any]:
    """The pruned model's config.json: the dense model's, with the sizes that changed.

    Model-wide sizes are the largest of any layer, and at least 1 since tools divide by them.
    """
    kept = {key: value for key, value in facts.settled().items() if key not in _DROPPED_KEYS}
    config = {
        **kept,
        "architectures": [facts.family.architecture],
        "dtype": str(dtype).removeprefix("torch."),
        "num_attention_heads": max(1, *(spec.query_heads for spec in layout)),
        "num_key_value_heads": max(1, *(spec.kv_heads for spec in layout)),
        "intermediate_size": max(1, *(spec.ffn for spec in layout)),
        "transformers_version": transformers.__version__,
    }
    if layout_kind == "uniform":
        return config
    ours = classes_of(facts.family.model_type)
    return {
        **config,
        "model_type": ours.config.model_type,
        "architectures": [ours.causal_lm.__name__],
        "auto_map": {
            "AutoConfig": f"{ours.module}.{ours.config.__name__}",
            "AutoModel": f"{ours.module}.{ours.model.__name__}",
            "AutoModelForCausalLM": f"{ours.module}.{ours.causal_lm.__name__}",
        },
        "per_layer_config": _per_layer_config(layout, config),
    }


def _per_layer_config(layout: Layout, whole: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What every layer has of its own, as transformers itself would save it."""
    found = {}
    for index, spec in enumerate(layout):
        own = {k: v for k, v in _layer_config(spec).items() if whole.get(k) != v}
        if own:
            found[index] = own
    digits = len(str(max(found, default=0)))
    return {str(index).zfill(digits): own for index, own in found.items()}


def _layer_config(spec: LayerSpec) -> dict[str, Any]:
    """A layer in transformers' vocabulary."""
    skip = [name for name, here in (("attention", spec.attention), ("mlp", spec.mlp)) if not here]
    sizes: dict[str, Any] = {"skip": skip} if skip else {}
    if spec.attention:
        sizes["num_attention_heads"] = spec.query_heads
        sizes["num_key_value_heads"] = spec.kv_heads
    if spec.mlp:
        sizes["intermediate_size"] = spec.ffn
    if spec.query_groups:
        sizes["query_groups"] = list(spec.query_groups)
    return sizes


def verify(destination: Path, layout: Layout, facts: Facts) -> Written:
    """Read the headers of what was written, hold them against the layout, and build the model.

    No weight is read: the model is built on the meta device and must want exactly the tensors
    that are there. Raises ModelError where files, config and layout disagree.
    """
    found = read_headers(destination)
    shapes = {name: info.shape for name, info in found.items()}
    _same_shapes(destination, shapes, tensor_shapes(facts, layout), "its layout")
    try:
        config = AutoConfig.from_pretrained(destination)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (ValueError, OSError, RuntimeError, StrictDataclassError) as error:
        raise ModelError(f"{destination} cannot be loaded by transformers: {error}") from error
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if facts.tied:
        del wanted[facts.family.head]
    _same_shapes(destination, shapes, wanted, "its config.json")
    dtypes = {_DTYPES.get(info.dtype, info.dtype) for info in found.values()}
    if dtypes != {str(config.dtype).removeprefix("torch.")}:
        raise ModelError(f"{destination}: tensors are {dtypes}, by its config.json {config.dtype}")
    return Written(
        parameters=sum(map(math.prod, shapes.values())),
        prunable_parameters=prunable_parameters(facts, layout),  # the files have its shapes
        weight_bytes=sum((destination / name).stat().st_size for name in shard_names(destination)),
    )


def _same_shapes(folder: Path, found: _Shapes, wanted: _Shapes, by: str) -> None:
    if found == wanted:
        return
    name = min(name for name in found | wanted if found.get(name) != wanted.get(name))
    there, due = found.get(name, "absent"), wanted.get(name, "absent")
    raise ModelError(f"{folder}: {name} is {there}; by {by} it is {due}")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
