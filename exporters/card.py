# SPDX-License-Identifier: Apache-2.0
"""The model card (README.md) of an exported model. Says nothing that a second build would not.

A card is data until it is rendered: so the verdict, which is known later, gets its own place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.repocard import metadata_load
from yaml import YAMLError

from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import (
    LayerSpec,
    Layout,
    dense_layout,
    is_uniform,
    kv_bytes_per_token,
    prunable_parameters,
    sparsity,
    total_parameters,
)
from prunec.exporters.artefact import Provenance
from prunec.exporters.hf_rules import LayoutKind
from prunec.validators.escaping import code, fenced, inline, sentence

_PLAIN = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```"""

_UNIFORM = f"""\
All layers are alike, so this is a plain {{architecture}}: transformers loads it with no code of
ours.

{_PLAIN}"""

_UNLIKE = "Layers differ in shape, which the stock {architecture} cannot say."
_ALIKE = "All layers are alike, but config.json names a class in which they need not be."
_PER_LAYER = """\
{layers} The class lies beside the weights as `modeling_prunec*.py`; read it, then

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder", trust_remote_code=True)
```

Where prunec is installed, no remote code is needed: `import prunec.exporters.hf` first."""


@dataclass(frozen=True)
class Card:
    """What a model card says: its YAML head, what stands before the first section, and sections by
    their titles, in Markdown."""

    head: Mapping[str, Any]
    opening: str
    sections: Mapping[str, str]

    def render(self, first: Mapping[str, str] | None = None) -> str:
        """The text of README.md; `first`: more sections, before all others."""
        head = yaml.safe_dump(dict(self.head), sort_keys=False, allow_unicode=True)
        parts = [f"---\n{head}---", self.opening]
        for title, text in {**(first or {}), **self.sections}.items():
            parts += [f"## {title}", text.strip()]
        return "\n\n".join(parts) + "\n"


def model_card(
    source: Path,
    facts: Facts,
    layout: Layout,
    bytes_per_value: int,
    provenance: Provenance,
    loading: str,
    *,
    quantized: bool = False,
    stored: Layout | None = None,
) -> Card:
    """Sizes before and after, layers, loading, the recipe.

    `source` is the dense model's folder, whose own card gives the licence. `bytes_per_value`: of
    the KV cache, and of weights that are not `quantized`. `loading`: how it is loaded, in Markdown.
    `stored`: the layout of the tensors where zeros were added to them.
    """
    held = stored or layout
    head = {
        "base_model": provenance.hub_id,
        "base_model_relation": "finetune" if provenance.hub_id else None,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["pruned", "prunec", provenance.method],
        **_inherited(source),
    }
    dense = code(provenance.source)
    if provenance.commit:
        dense += f" (commit {code(provenance.commit)})"
    gone = "is gone from the files, not zeroed."
    if held != layout:
        gone = "is gone from the files, but for zeros that give all layers as many query heads."
    opening = f"""\
# {inline(Path(provenance.source).name)}, {sparsity(facts, held):.1%} pruned

{dense}, made physically smaller by prunec: what was pruned {gone}

| | dense | this model |
| --- | ---: | ---: |
{_sizes(facts, held, bytes_per_value, quantized=quantized)}

Sparsity is the share of the prunable parameters (attention and MLP projections) that is gone."""
    sections = {
        "Loading": loading,
        "Layers": _layers(facts, layout),
        "How it was made": _made(provenance),
    }
    return Card({key: value for key, value in head.items() if value}, opening, sections)


def loading_in_transformers(facts: Facts, layout: Layout, layout_kind: LayoutKind) -> str:
    """How transformers loads a Hugging Face folder."""
    architecture = facts.family.architecture
    if layout_kind == "uniform":
        return _UNIFORM.format(architecture=architecture)
    layers = _ALIKE if is_uniform(layout) else _UNLIKE.format(architecture=architecture)
    return _PER_LAYER.format(layers=layers)


def _made(provenance: Provenance) -> str:
    """The method, the texts, the recipe."""
    text = provenance.calibration
    read = f"calibrated on {text}" if text else "which reads no text"
    said = f"Method `{provenance.method}`, {read}."
    if provenance.recovery:
        said += f" Then {provenance.recovery}."
    return f"""\
{sentence(said)}
The recipe, also in `prunec/recipe.yaml`; `prunec/plan.json` says what it was resolved to:

{fenced(provenance.recipe_text.rstrip(), "yaml")}"""


def _inherited(source: Path) -> dict[str, Any]:
    """Licence and language, which pruning does not change, from the dense model's card."""
    card = source / "README.md"
    try:
        head = metadata_load(card) if card.is_file() else None
    except (ValueError, YAMLError):  # somebody else's card; a build does not fail over it
        head = None
    keys = ("license", "license_name", "license_link", "language")
    return {key: head[key] for key in keys if key in head} if head else {}


def _sizes(facts: Facts, layout: Layout, bytes_per_value: int, *, quantized: bool) -> str:
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


def _layers(facts: Facts, layout: Layout) -> str:
    rows = "\n".join(
        f"| {index} | {_query_heads(spec)} | {spec.kv_heads or '-'} | {spec.ffn or '-'} |"
        for index, spec in enumerate(layout)
    )
    return f"""\
| layer | query heads | KV heads | MLP width |
| ---: | ---: | ---: | ---: |
{rows}

Each of the dense model's {facts.layers} layers has {facts.query_heads} query heads,
{facts.kv_heads} KV heads and an MLP width of {facts.ffn:,}; a head is {facts.head_dim} wide.
A dash means that the layer has no attention, or no MLP."""


def _query_heads(spec: LayerSpec) -> str:
    """5 (2 + 3) where two KV heads serve two and three query heads."""
    shared = f" ({' + '.join(map(str, spec.query_groups))})" if spec.query_groups else ""
    return f"{spec.query_heads or '-'}{shared}"
