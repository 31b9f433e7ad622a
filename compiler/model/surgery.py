# SPDX-License-Identifier: Apache-2.0
"""Physical removal: slice a layer's tensors down to the units that stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prunec.compiler.model.facts import Facts
from prunec.compiler.model.families import Rows
from prunec.compiler.model.layout import (
    LayerSelection,
    dense_layout,
    norm_shapes,
    projection_shapes,
    rows_of,
)


def slice_layer(
    facts: Facts, tensors: Mapping[str, Tensor], selection: LayerSelection
) -> dict[str, Tensor]:
    """The tensors of one layer at a selection. Names are relative to the layer.

    Rows of what computes queries, keys, values, gate and up, columns of output and down. Biases of
    the former follow their rows, biases of the latter stay whole. An absent sublayer takes its
    norms along.
    """
    family = facts.family
    units: dict[Rows, Tensor] = {
        "query": head_rows(selection.query_heads, facts.head_dim),
        "key": head_rows(selection.kv_heads, facts.head_dim),
        "value": head_rows(selection.kv_heads, facts.head_dim),
        "gate": torch.tensor(selection.neurons, dtype=torch.long),
        "up": torch.tensor(selection.neurons, dtype=torch.long),
    }
    rows = {name: fused_rows(facts, parts, units) for name, parts in family.inputs.items()}
    rows |= {name.removesuffix(".weight"): units[part] for name, part in family.layer_norms.items()}
    columns = {family.output: units["query"], family.down: units["gate"]}
    spec = selection.spec(facts.head_dim)
    stay = projection_shapes(facts, spec) | norm_shapes(facts, spec)

    sliced = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if name not in stay:
            continue
        if module in rows:
            tensor = tensor.index_select(0, rows[module].to(tensor.device))
        elif module in columns and kind == "weight":
            tensor = tensor.index_select(1, columns[module].to(tensor.device))
        sliced[name] = tensor
    return sliced


def fused_rows(facts: Facts, parts: Sequence[Rows], units: Mapping[Rows, Tensor]) -> Tensor:
    """Rows of a dense projection that computes several parts, one behind the other.

    units: the rows of each part that stay, numbered from the part's own first row
    """
    sizes = rows_of(dense_layout(facts)[0])
    found, before = [], 0
    for part in parts:
        found.append(units[part] + before)
        before += sizes[part]
    return torch.cat(found)


def head_rows(heads: tuple[int, ...], head_dim: int) -> Tensor:
    """[len(heads) * head_dim]: the rows (or columns) that a set of heads occupies."""
    starts = torch.tensor(heads, dtype=torch.long)[:, None] * head_dim
    return (starts + torch.arange(head_dim)).flatten()
