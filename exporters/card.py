# SPDX-License-Identifier: Apache-2.0
"""The model card (README.md) of an exported model. Says nothing that a second build would not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.repocard import metadata_load
from yaml import YAMLError

from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import (
    LayerSpec,
    Layout,
    dense_layout,
    kv_bytes_per_token,
    prunable_parameters,
    sparsity,
    total_parameters,
)
from prunec.exporters.artefact import Provenance
from prunec.exporters.hf_rules import LayoutKind

_PLAIN = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```
"""

_UNIFORM = f"""\
All layers are alike, so this is a plain {{architecture}}: transformers loads it with no code of
ours.

{_PLAIN}"""

_PER_LAYER = """\
Each layer has its own shape, which the stock {architecture} cannot say. The class that can lies
beside the weights as `modeling_prunec*.py`; read it, then

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder", trust_remote_code=True)
```

Where prunec is installed, no remote code is needed: `import prunec.exporters.hf` first.
"""


def model_card(
    source: Path,
    facts: Facts,
    layout: Layout,
    layout_kind: LayoutKind,
    bytes_per_value: int,
    provenance: Provenance,
    *,
    quantized: bool = False,
) -> str:
    """The text of README.md: YAML head, sizes before and after, layers, loading, the recipe.

    `source` is the dense model's folder, whose own card gives the licence. `bytes_per_value`: of
    the KV cache, and of weights that are not `quantized`.
    """
    head = ModelCardData(
        base_model=provenance.hub_id,
        base_model_relation="finetune" if provenance.hub_id else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["pruned", "prunec", provenance.method],
        **_inherited(source),
    )
    loading = _UNIFORM if layout_kind == "uniform" else _PER_LAYER
    recipe = provenance.recipe_text
    recovered = f"\nThen {provenance.recovery}." if provenance.recovery else ""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", recipe)), default=0))
    dense = f"`{provenance.source}`"
    if provenance.commit:
        dense += f" (commit {provenance.commit})"
    return f"""\
---
{head.to_yaml()}
---

# {Path(provenance.source).name}, {sparsity(facts, layout):.1%} pruned

{dense}, made physically smaller by prunec: what was pruned is gone from the files,
not zeroed.

| | dense | this model |
| --- | ---: | ---: |
{_sizes(facts, layout, bytes_per_value, quantized)}

Sparsity is the share of the prunable parameters (attention and MLP projections) that is gone.

## Loading

{loading.format(architecture=facts.family.architecture)}
## Layers

| layer | query heads | KV heads | MLP width |
| ---: | ---: | ---: | ---: |
{_layers(layout)}

Each of the dense model's {facts.layers} layers has {facts.query_heads} query heads,
{facts.kv_heads} KV heads and an MLP width of {facts.ffn:,}; a head is {facts.head_dim} wide.
A dash means that the layer has no attention, or no MLP.

## How it was made

Method `{provenance.method}`, calibrated on {provenance.calibration}.{recovered}
The recipe, also in `prunec/recipe.yaml`; `prunec/plan.json` says what it was resolved to:

{fence}yaml
{recipe.rstrip()}
{fence}
"""


def with_section(card: str, title: str, text: str, *, before: str) -> str:
    """The card with a section's text replaced; one that it lacks is put in `before` another."""
    head, old, rest = card.partition(f"\n## {title}\n")
    if old:
        _, following, behind = rest.partition("\n## ")
    else:
        head, following, behind = card.partition(f"\n## {before}\n")
    return f"{head}\n## {title}\n\n{text.strip()}\n{following}{behind}"


def _inherited(source: Path) -> dict[str, Any]:
    """Licence and language, which pruning does not change, from the dense model's card."""
    card = source / "README.md"
    try:
        head = metadata_load(card) if card.is_file() else None
    except (ValueError, YAMLError):  # somebody else's card; a build does not fail over it
        head = None
    keys = ("license", "license_name", "license_link", "language")
    return {key: head[key] for key in keys if key in head} if head else {}


def _sizes(facts: Facts, layout: Layout, bytes_per_value: int, quantized: bool) -> str:
    rows: dict[str, list[int]] = {}
    for each in (dense_layout(facts), layout):
        parameters = total_parameters(facts, each)
        sizes = {"parameters": parameters, "prunable parameters": prunable_parameters(facts, each)}
        if not quantized:
            sizes[f"bytes of weights, {bytes_per_value} a value"] = parameters * bytes_per_value
        sizes["KV cache, bytes a token"] = kv_bytes_per_token(facts, each, bytes_per_value)
        for name, value in sizes.items():
            rows.setdefault(name, []).append(value)
    table = [f"| {name} | {dense:,} | {pruned:,} |" for name, (dense, pruned) in rows.items()]
    return "\n".join([*table, f"| sparsity | 0 | {sparsity(facts, layout):.2%} |"])


def _layers(layout: Layout) -> str:
    return "\n".join(
        f"| {index} | {_query_heads(spec)} | {spec.kv_heads or '-'} | {spec.ffn or '-'} |"
        for index, spec in enumerate(layout)
    )


def _query_heads(spec: LayerSpec) -> str:
    """5 (2 + 3) where two KV heads serve two and three query heads."""
    shared = f" ({' + '.join(map(str, spec.query_groups))})" if spec.query_groups else ""
    return f"{spec.query_heads or '-'}{shared}"
