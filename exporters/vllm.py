# SPDX-License-Identifier: Apache-2.0
"""Folders for `vllm serve`: what is written for transformers, in the class that vLLM gets right."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import Layout
from prunec.exporters import hf
from prunec.exporters.artefact import Provenance
from prunec.exporters.hf import verify as verify
from prunec.exporters.hf_rules import LayoutKind

# Families whose stock class in vLLM reads no head_dim: it divides the hidden size by query heads.
_IMPLICIT_HEAD_DIM = frozenset({"qwen2"})


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
    """As `hf.export`; raises what that raises.

    A uniform model whose stock class would misread the size of its heads is written per layer.
    """
    width = layout[0].query_heads * facts.head_dim
    if facts.family.model_type in _IMPLICIT_HEAD_DIM and width != facts.hidden_size:
        layout_kind = "per_layer"
    hf.export(
        destination,
        source,
        facts,
        layout,
        layout_kind,
        tensors,
        dtype,
        max_shard_bytes,
        provenance,
    )
