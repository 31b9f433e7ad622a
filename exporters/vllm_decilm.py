# SPDX-License-Identifier: Apache-2.0
"""Folders in vLLM's stock dialect for layers of different shapes: DeciLM, or Nemotron-NAS.

All layers have one number of query heads there. Where a layer has fewer, zeros are added to each of
its KV heads' groups: a query of zeros attends to everything, and no output reads it.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoConfig

from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.facts import Facts
from prunec.compiler.model.headers import read_headers, shard_names
from prunec.compiler.model.layout import (
    LayerSpec,
    Layout,
    prunable_parameters,
    tensor_shapes,
    total_parameters,
)
from prunec.exporters import configuration_decilm, hf
from prunec.exporters.artefact import Provenance, Written
from prunec.exporters.card import Card, model_card
from prunec.exporters.hf_rules import LayoutKind
from prunec.exporters.vllm_rules import DECILM_SETTINGS
from prunec.validators.manifest import CARD

# Keys of config.json that say where it is from, and those that pruning changes.
_OF_A_FOLDER = ("model_type", "architectures", "auto_map", "_name_or_path")
_PRUNED = (
    "dtype",
    "head_dim",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "transformers_version",
)

_LOADING = """\
vLLM serves this folder with no plugin; the configuration file beside the weights is ours:

```
vllm serve path/to/this/folder --trust-remote-code
```
"""
_FILLED = "Layers that have fewer query heads than others are filled up with zeros."


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
) -> None:
    """As `hf.export`, and raises what that raises; ModelError if layer 0 has no attention."""
    full = filled_up(layout)
    hf.export(
        destination,
        source,
        facts,
        layout,
        "per_layer",
        _padded(facts, layout, full, tensors),
        dtype,
        max_shard_bytes,
        provenance,
        stored=full,
    )
    for file in destination.glob("modeling_*.py"):
        file.unlink()
    config = decilm_config(facts, full, dtype)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (destination / "config.json").write_text(text, encoding="utf-8")
    shutil.copy(configuration_decilm.__file__, destination)
    described = card(source, facts, layout, layout_kind, dtype, provenance)
    (destination / CARD).write_text(described.render(), encoding="utf-8")


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
    full = filled_up(layout)
    loading = _LOADING if full == layout else f"{_LOADING}\n{_FILLED}"
    return model_card(source, facts, layout, dtype.itemsize, provenance, loading, stored=full)


def filled_up(layout: Layout) -> Layout:
    """The layout with as many query heads in every layer: no more than the KV heads make needed.

    ModelError if layer 0 has no attention, or KV heads serve different numbers of query heads.
    """
    if not layout[0].attention:
        raise ModelError("layer 0 has no attention, which DeciLM cannot express")
    if any(spec.query_groups for spec in layout):
        raise ModelError("KV heads serve different numbers of query heads; DeciLM's cannot")
    together = math.lcm(*(spec.kv_heads for spec in layout if spec.attention))
    most = max(spec.query_heads for spec in layout)
    heads = together * math.ceil(most / together)
    return tuple(replace(s, query_heads=heads) if s.attention else s for s in layout)


def _padded(
    facts: Facts, layout: Layout, full: Layout, tensors: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors with zeros for the query heads that were added, behind those of each group."""
    family = facts.family
    queries = [name for name, rows in family.attention_inputs.items() if rows == ("query",)]
    by_rows = {
        family.in_layer(index, f"{name}.{kind}"): index
        for index, spec in enumerate(layout)
        for name in queries
        for kind in ("weight", "bias")
        if spec.attention
    }
    by_columns = {
        family.in_layer(index, f"{family.output}.weight"): index
        for index, spec in enumerate(layout)
        if spec.attention
    }
    for name, tensor in tensors:
        if name in by_rows:
            index = by_rows[name]
            yield name, _pad_rows(tensor, layout[index], full[index])
        elif name in by_columns:
            index = by_columns[name]
            yield name, _pad_rows(tensor.T, layout[index], full[index]).T
        else:
            yield name, tensor


def _pad_rows(tensor: Tensor, spec: LayerSpec, full: LayerSpec) -> Tensor:
    """[query heads * head_dim, …] → as many rows as `full` has."""
    grouped = tensor.reshape(spec.kv_heads, -1, math.prod(tensor.shape[1:]))
    missing = (full.queries_per_group - spec.queries_per_group) * spec.head_dim
    return pad(grouped, (0, 0, 0, missing)).reshape(-1, *tensor.shape[1:])


def decilm_config(facts: Facts, full: Layout, dtype: torch.dtype) -> dict[str, Any]:
    """The config.json of a layout that has one number of query heads.

    What the dense model's leaves out is said, as its own class settles it: DeciLM's defaults are
    others.
    """
    source = {key: value for key, value in facts.settled().items() if key not in _OF_A_FOLDER}
    settled = AutoConfig.for_model(facts.family.model_type, **source).to_dict()
    pruned = hf.model_config(facts, full, "uniform", dtype)
    blocks = [
        {
            "attention": {
                "no_op": not spec.attention,
                "n_heads_in_group": spec.queries_per_group or None,
            },
            "ffn": {"no_op": not spec.mlp, "intermediate_size": spec.ffn or None},
        }
        for spec in full
    ]
    ours = configuration_decilm.DeciLMConfig
    module = configuration_decilm.__name__.rpartition(".")[2]
    return {
        **{key: value for key, value in settled.items() if key not in _OF_A_FOLDER},
        **{key: pruned[key] for key in _PRUNED},
        **DECILM_SETTINGS[facts.family.model_type],
        "model_type": ours.model_type,
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoConfig": f"{module}.{ours.__name__}"},
        "block_configs": blocks,
    }


def verify(destination: Path, layout: Layout, facts: Facts) -> Written:
    """Hold the headers of what was written and its config against the layout.

    Raises ModelError where they disagree. Sizes count the zeros too: they are in the files.
    """
    full = filled_up(layout)
    found = {name: info.shape for name, info in read_headers(destination).items()}
    due = tensor_shapes(facts, full)
    if odd := sorted(name for name in found | due if found.get(name) != due.get(name)):
        raise ModelError(
            f"{destination}: {odd[0]} is {found.get(odd[0], 'absent')}; "
            f"by its layout it is {due.get(odd[0], 'absent')}"
        )
    config = configuration_decilm.DeciLMConfig.from_pretrained(destination)
    if config.shapes() != [(s.query_heads, s.kv_heads, s.ffn) for s in full]:
        raise ModelError(f"{destination}: its config.json does not give the layout")
    return Written(
        parameters=total_parameters(facts, full),
        prunable_parameters=prunable_parameters(facts, full),
        weight_bytes=sum((destination / name).stat().st_size for name in shard_names(destination)),
    )
