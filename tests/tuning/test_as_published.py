# SPDX-License-Identifier: Apache-2.0
"""Units that the tuner as published removes are those of its formula, in float64 on transformers'
own model and gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from prunec.compiler.model.checkpoint import Checkpoint
from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.folder import facts_from_folder
from prunec.compiler.model.layout import LayerSpec
from prunec.compiler.passes.importance.collect import collect
from prunec.compiler.search.budget import Budget
from prunec.compiler.tuning.one_shot import OneShot
from prunec.compiler.tuning.pools import Group, Pool, Pools
from prunec.compiler.tuning.space import (
    ELEMENTS,
    FAITHFUL_AGGREGATIONS,
    FAITHFUL_EXPONENTS,
    VECTOR,
    TuningSpace,
)

LAYERS, HEADS, KV, DIM, FFN, WINDOWS, LENGTH = 2, 8, 4, 8, 96, 6, 16
SPEC = LayerSpec(2, 2, DIM, FFN // 2)
Matrices = dict[str, Tensor]


@pytest.fixture
def folder(tiny_llama: Callable[..., Path]) -> Path:

    return tiny_llama(
        layers=LAYERS, hidden=64, query_heads=HEADS, kv_heads=KV, head_dim=DIM, ffn=FFN, vocab=60
    )


def _terms(folder: Path, ids: Tensor) -> list[dict[str, tuple[Tensor, Tensor]]]:
    """(w ∂L, w² F) of every layer's vectors, [vectors, entries]: columns of output and down."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64)
    first: list[Matrices] = [{} for _ in range(LAYERS)]
    fisher: list[Matrices] = [{} for _ in range(LAYERS)]
    for window in ids:
        model.zero_grad()
        model(window[None], labels=window[None]).loss.backward()
        for index, layer in enumerate(model.model.layers):
            for name in ("q", "k", "v", "o", "gate", "up", "down"):
                owner = layer.self_attn if len(name) == 1 else layer.mlp
                gradient = getattr(owner, f"{name}_proj").weight.grad
                first[index][name] = first[index].get(name, 0) + gradient
                fisher[index][name] = fisher[index].get(name, 0) + gradient**2
    found = []
    for index, layer in enumerate(model.model.layers):
        terms = {}
        for name in first[index]:
            owner = layer.self_attn if len(name) == 1 else layer.mlp
            weight = getattr(owner, f"{name}_proj").weight.detach()
            pair = weight * first[index][name], weight**2 * fisher[index][name]
            terms[name] = tuple(x.T if name in ("o", "down") else x for x in pair)
        found.append(terms)
    return found


def _published(
    terms: dict[str, tuple[Tensor, Tensor]],
    parts: str,
    units: int,
    alpha: float,
    order: str,
    aggregation: str,
    exponent: float,
) -> Tensor:
    """[units]: Agg over the matrices of a group of α norm(vector) + (1 − α) norm(element)."""

    def normed(of_vectors: Tensor) -> Tensor:
        of_units = of_vectors.reshape(units, -1).sum(1)
        normal: Tensor = (of_units / of_units.mean()) ** exponent
        return normal

    table = []
    for part in parts.split():
        s, f = terms[part]
        element = {"first": s.abs(), "second": f, "mixed": (s - f / 2).abs()}[order].sum(1)
        table.append(alpha * normed(s.sum(1).abs()) + (1 - alpha) * normed(element))
    joined = torch.stack(table)
    return {
        "sum": joined.sum(0),
        "product": joined.prod(0),
        "max": joined.amax(0),
        "last": joined[-1],
    }[aggregation]


def _best(scores: Tensor, count: int, among: range) -> set[int]:
    return set(sorted(among, key=lambda unit: -float(scores[unit]))[:count])


def test_units_are_chosen_by_what_is_mixed_in_each_matrix_and_then_aggregated(
    folder: Path,
) -> None:
    decoder = Decoder(
        Checkpoint(folder, facts_from_folder(folder)), torch.float32, torch.device("cpu")
    )
    ids = torch.randint(3, 60, (WINDOWS, LENGTH), generator=torch.Generator().manual_seed(0))
    known = {}

    class Memory:
        def has(self, layer: int) -> bool:
            return False

        def save(self, layer: int, statistics: object) -> None:
            known[layer] = statistics

        def load_gradients(self, layer: int) -> None: ...
        def save_gradients(self, layer: int, outward: Tensor) -> None: ...

    collect(decoder, ids, [torch.arange(WINDOWS)], Memory(), with_gram=False, with_gradients=True)
    group = Group(0, 0, tuple(range(WINDOWS)), WINDOWS * LENGTH)
    pool = Pool("statistics", "", LENGTH, (group,), known.__getitem__, {})  # type: ignore[arg-type]
    facts = decoder.facts
    budget = Budget(facts, 0.5, 8, tied=False, attention_is_legal=lambda queries, kv: True)
    shot = OneShot(facts, budget, (SPEC,) * LAYERS, Pools([pool]), refit=False)
    space = TuningSpace(
        weights={"": 1.0},
        mixture=False,
        lengths=(LENGTH,),
        loss_quantiles=1,
        groups=1,
        damping=(0.01, 0.01),
        metrics=(VECTOR, *ELEMENTS.values()),
        aggregations=FAITHFUL_AGGREGATIONS,
        exponents=FAITHFUL_EXPONENTS,
        faithful=True,
    )
    agree = total = 0
    for index, terms in enumerate(_terms(folder, ids)):
        for order in ELEMENTS:
            for aggregation in FAITHFUL_AGGREGATIONS:
                for exponent in FAITHFUL_EXPONENTS:
                    alpha = 0.4
                    point: dict[str, str | float] = {
                        "vector": alpha,
                        "order": order,
                        "aggregation": aggregation,
                        "exponent": exponent,
                    }
                    cut = shot.layer(
                        index, decoder.layer_tensors(index), SPEC, space.settings(point)
                    )
                    how = (alpha, order, aggregation, exponent)
                    groups = _published(terms, "q k v o", KV, *how)
                    heads = _published(terms, "q o", HEADS, *how)
                    kv = _best(groups, SPEC.kv_heads, range(KV))
                    queries = set[int]().union(
                        *(_best(heads, 1, range(2 * g, 2 * g + 2)) for g in kv)
                    )
                    neurons = _best(
                        _published(terms, "gate up down", FFN, *how), SPEC.ffn, range(FFN)
                    )
                    kept = cut.selection
                    for ours, theirs in (
                        (kept.kv_heads, kv),
                        (kept.query_heads, queries),
                        (kept.neurons, neurons),
                    ):
                        agree += len({*ours} & theirs)
                        total += len(theirs)
    assert agree / total > 0.999  # float32 may reverse two units of all but equal scores
