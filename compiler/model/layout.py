# SPDX-License-Identifier: Apache-2.0
"""The one truth about a model's shape, and everything that is counted from it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prunec.compiler.model.facts import Facts
from prunec.compiler.model.families import Rows


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """The shape of one decoder layer. Zero KV heads: no attention; zero neurons: no MLP.

    query_groups: query heads of each KV head where these differ; None where all have as many
    """

    query_heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    query_groups: tuple[int, ...] | None = None

    @property
    def attention(self) -> bool:
        return self.kv_heads > 0

    @property
    def mlp(self) -> bool:
        return self.ffn > 0

    @property
    def queries_per_group(self) -> int:
        """Query heads that share one KV head where all have as many (0 without attention)."""
        return self.query_heads // self.kv_heads if self.kv_heads else 0

    def as_dict(self) -> dict[str, Any]:
        """The form that reports and plans write."""
        uneven = {"query_groups": list(self.query_groups)} if self.query_groups else {}
        return {
            "query_heads": self.query_heads,
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "ffn": self.ffn,
            "attention": self.attention,
            "mlp": self.mlp,
            **uneven,
        }


Layout = tuple[LayerSpec, ...]


@dataclass(frozen=True, slots=True)
class LayerSelection:
    """Which units of a dense layer stay, as ascending indices into it.

    Stock attention kernels assume that query head `q` reads KV head `q // queries_per_group`.
    Where query heads do not stay in equal numbers in every KV group that stays, `query_groups`
    says how many stay in each; otherwise it is None.
    """

    query_heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    neurons: tuple[int, ...]
    query_groups: tuple[int, ...] | None = None

    def spec(self, head_dim: int) -> LayerSpec:
        return LayerSpec(
            len(self.query_heads),
            len(self.kv_heads),
            head_dim,
            len(self.neurons),
            self.query_groups,
        )


def plain_selection(selection: LayerSelection) -> dict[str, list[int]]:
    """A selection as JSON."""
    return {name: list(units) for name, units in asdict(selection).items() if units is not None}


def selection_from_plain(plain: Mapping[str, Sequence[int]]) -> LayerSelection:
    """The selection that `plain_selection` has written."""
    return LayerSelection(**{name: tuple(units) for name, units in plain.items()})


def free_selection(
    facts: Facts, query_heads: Sequence[int], neurons: Sequence[int]
) -> LayerSelection:
    """Any query heads at all: a KV head stays as long as one of its query heads does."""
    per_group = facts.query_heads // facts.kv_heads
    readers = Counter(head // per_group for head in query_heads)
    kv_heads = tuple(sorted(readers))
    groups = tuple(readers[head] for head in kv_heads)
    return LayerSelection(
        tuple(sorted(query_heads)),
        kv_heads,
        tuple(sorted(neurons)),
        groups if len(set(groups)) > 1 else None,
    )


def plain_layout(layout: Layout) -> list[list[Any]]:
    """A layout as JSON: query heads, KV heads, neurons, and query groups where they differ."""
    return [
        [spec.query_heads, spec.kv_heads, spec.ffn]
        + ([list(spec.query_groups)] if spec.query_groups else [])
        for spec in layout
    ]


def layout_from_plain(plain: Sequence[Sequence[Any]], head_dim: int) -> Layout:
    """The layout that `plain_layout` has written."""
    return tuple(
        LayerSpec(queries, kv, head_dim, ffn, tuple(*groups) or None)
        for queries, kv, ffn, *groups in plain
    )


def dense_layout(facts: Facts) -> Layout:
    """The layout of the model before anything is removed."""
    spec = LayerSpec(facts.query_heads, facts.kv_heads, facts.head_dim, facts.ffn)
    return (spec,) * facts.layers


def projection_shapes(facts: Facts, spec: LayerSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of a layer's prunable tensors (weights [out, in] and biases [out]) at a spec.

    Names are relative to the layer. Tensors of an absent sublayer are absent.
    """
    family, d_model, rows = facts.family, facts.hidden_size, rows_of(spec)
    weights: dict[str, tuple[int, int]] = {}
    if spec.attention:
        for name, parts in family.attention_inputs.items():
            weights[name] = (sum(rows[part] for part in parts), d_model)
        weights[family.output] = (d_model, rows["query"])
    if spec.mlp:
        for name, parts in family.mlp_inputs.items():
            weights[name] = (sum(rows[part] for part in parts), d_model)
        weights[family.down] = (d_model, spec.ffn)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in weights.items():
        shapes[f"{name}.weight"] = shape
        if name in facts.biased:
            shapes[f"{name}.bias"] = shape[:1]
    return shapes


def rows_of(spec: LayerSpec) -> dict[Rows, int]:
    """How many rows every part of a layer's projections has."""
    d_query, d_kv = spec.query_heads * spec.head_dim, spec.kv_heads * spec.head_dim
    return {"query": d_query, "key": d_kv, "value": d_kv, "gate": spec.ffn, "up": spec.ffn}


def norm_shapes(facts: Facts, spec: LayerSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of a layer's norms: a norm lives and dies with the sublayer that it belongs to."""
    family, rows = facts.family, rows_of(spec)
    shapes: dict[str, tuple[int, ...]] = {}
    if spec.attention:
        shapes |= dict.fromkeys(family.attention_norms, (facts.hidden_size,))
        shapes |= dict.fromkeys(family.head_norms, (facts.head_dim,))
        shapes |= {name: (rows[part],) for name, part in family.layer_norms.items()}
    if spec.mlp:
        shapes |= dict.fromkeys(family.mlp_norms, (facts.hidden_size,))
    return shapes


def tensor_shapes(facts: Facts, layout: Sequence[LayerSpec]) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of a model by their full names, in the order in which they are stored.

    A tied head is not.
    """
    family = facts.family
    shapes: dict[str, tuple[int, ...]] = {family.embedding: (facts.vocab_size, facts.hidden_size)}
    for index, spec in enumerate(layout):
        layer = projection_shapes(facts, spec) | norm_shapes(facts, spec)
        shapes |= {family.in_layer(index, name): shape for name, shape in sorted(layer.items())}
    shapes[family.final_norm] = (facts.hidden_size,)
    if not facts.tied:
        shapes[family.head] = shapes[family.embedding]
    return shapes


def attention_parameters(facts: Facts, spec: LayerSpec) -> int:
    """Prunable parameters of the attention sublayer."""
    return _count(
        projection_shapes(facts, LayerSpec(spec.query_heads, spec.kv_heads, spec.head_dim, 0))
    )


def mlp_parameters(facts: Facts, spec: LayerSpec) -> int:
    """Prunable parameters of the MLP sublayer."""
    return _count(projection_shapes(facts, LayerSpec(0, 0, spec.head_dim, spec.ffn)))


def prunable_parameters(facts: Facts, layout: Sequence[LayerSpec]) -> int:
    """Parameters of all projections, biases included: what sparsity is a share of."""
    return sum(attention_parameters(facts, s) + mlp_parameters(facts, s) for s in layout)


def total_parameters(facts: Facts, layout: Sequence[LayerSpec]) -> int:
    """All parameters; a tied head is counted once."""
    embeddings = facts.vocab_size * facts.hidden_size * (1 if facts.tied else 2)
    norms = facts.hidden_size + sum(_count(norm_shapes(facts, spec)) for spec in layout)
    return embeddings + norms + prunable_parameters(facts, layout)


def sparsity(facts: Facts, layout: Sequence[LayerSpec]) -> float:
    """Share of the prunable parameters that is gone."""
    return 1 - prunable_parameters(facts, layout) / prunable_parameters(facts, dense_layout(facts))


def kv_bytes_per_token(facts: Facts, layout: Sequence[LayerSpec], bytes_per_value: int = 2) -> int:
    """Bytes that one token adds to the KV cache, in bytes."""
    return sum(2 * spec.kv_heads * spec.head_dim * bytes_per_value for spec in layout)


def flops_per_token(facts: Facts, layout: Sequence[LayerSpec]) -> int:
    """Multiply-adds of the weight matrices for one token, times two; attention scores left out."""
    head = facts.vocab_size * facts.hidden_size
    return 2 * (head + prunable_parameters(facts, layout))


def is_uniform(layout: Sequence[LayerSpec]) -> bool:
    """Whether all layers are alike, so that a stock config can say it."""
    return len(set(layout)) == 1 and layout[0].query_groups is None


def _count(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())
