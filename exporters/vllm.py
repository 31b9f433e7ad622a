# SPDX-License-Identifier: Apache-2.0
"""Folders for `vllm serve`: what is written for transformers, in the class that vLLM gets right."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import Layout
from prunec.exporters import hf
from prunec.exporters.artefact import Provenance
from prunec.exporters.card import Card, model_card
from prunec.exporters.hf import verify as verify
from prunec.exporters.hf_rules import LayoutKind
from prunec.exporters.vllm_rules import misread_by_stock
from prunec.validators.manifest import CARD

_STOCK = """\
All layers are alike: vLLM serves it with its own class of the model, with nothing of ours.

```
vllm serve path/to/this/folder
```
"""

_PLUGIN = """\
vLLM finds the class of this model where prunec is installed beside it, `pip install prunec`; no
remote code is run. transformers opens the folder as well, with `trust_remote_code=True`.

```
vllm serve path/to/this/folder
```
"""


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

    A uniform model that vLLM's stock class would misread is written for the plugin all the same.
    """
    if _is_misread(facts, layout):
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
    plain = layout_kind == "uniform" and not _is_misread(facts, layout)
    loading = _STOCK if plain else _PLUGIN
    return model_card(source, facts, layout, dtype.itemsize, provenance, loading)


def _is_misread(facts: Facts, layout: Layout) -> bool:
    """Whether vLLM's stock class would misread the model if it were written as a plain one."""
    sizes = {
        "model_type": facts.family.model_type,
        "num_attention_heads": layout[0].query_heads,
        "head_dim": facts.head_dim,
    }
    return misread_by_stock({**facts.config, **sizes}) is not None
