# SPDX-License-Identifier: Apache-2.0
"""Physical removal: slice a layer's tensors down to the units that stay."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import LayerSelection


def slice_layer(
    facts: Facts, tensors: Mapping[str, Tensor], selection: LayerSelection
) -> dict[str, Tensor]:
    """The tensors of one layer at a selection. Names are relative to the layer.

    Rows of query, key, value, gate and up, columns of output and down. Biases of the former
    follow their rows, biases of the latter stay whole. An absent sublayer takes its norm along.
    """
    family = facts.family
    query = head_rows(selection.query_heads, facts.head_dim)
    kv = head_rows(selection.kv_heads, facts.head_dim)
    neurons = torch.tensor(selection.neurons, dtype=torch.long)
    rows = {family.query: query, family.key: kv, family.value: kv}
    rows |= {family.gate: neurons, family.up: neurons}
    columns = {family.output: query, family.down: neurons}
    gone = set()
    if not selection.kv_heads:
        gone |= {family.query, family.key, family.value, family.output, family.attention_norm}
    if not selection.neurons:
        gone |= {family.gate, family.up, family.down, family.mlp_norm}

    sliced = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if module in gone or name in gone:
            continue
        if module in rows:
            tensor = tensor.index_select(0, rows[module].to(tensor.device))
        elif module in columns and kind == "weight":
            tensor = tensor.index_select(1, columns[module].to(tensor.device))
        sliced[name] = tensor
    return sliced


def head_rows(heads: tuple[int, ...], head_dim: int) -> Tensor:
    """[len(heads) * head_dim]: the rows (or columns) that a set of heads occupies."""
    starts = torch.tensor(heads, dtype=torch.long)[:, None] * head_dim
    return (starts + torch.arange(head_dim)).flatten()
