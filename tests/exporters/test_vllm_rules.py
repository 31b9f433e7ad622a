# SPDX-License-Identifier: Apache-2.0
"""What a recipe that exports for vLLM allows, and what it is refused for while planning."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from prunec.compiler.diagnostics import RecipeProblemError
from prunec.compiler.model.facts import Facts, facts_from_config
from prunec.compiler.model.layout import LayerSpec
from prunec.compiler.plan_builder import Subject
from prunec.compiler.planner import make_plan
from prunec.compiler.recipe import Recipe
from prunec.compiler.search.budget import Budget
from prunec.compiler.target import budget_of
from prunec.exporters.vllm_decilm import filled_up

CONFIG = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 12,
    "num_key_value_heads": 6,
    "head_dim": 16,
}


def _facts(**changes: Any) -> Facts:
    return facts_from_config(CONFIG | changes)


def _recipe(*exports: dict[str, Any], **sections: Any) -> Recipe:
    content = {
        "schema_version": 1,
        "model": {"source": "org/model"},
        "method": {"kind": "tyr"},
        "target": {"sparsity": 0.5, "multiple_of": 8},
        "calibration": {"source": {"kind": "python_stdlib"}},
        "export": list(exports),
        **sections,
    }
    return Recipe.model_validate(content)


def _budget(recipe: Recipe, **changes: Any) -> Budget:
    return budget_of(recipe, _facts(**changes))


def _problem(recipe: Recipe, **changes: Any) -> str:
    with pytest.raises(RecipeProblemError) as refused:
        make_plan(recipe, Subject(_facts(**changes), None, "model"), Path())
    assert refused.value.key.startswith(("export.", "validate"))
    return refused.value.message


def test_tensor_parallelism_decides_heads_and_widths() -> None:
    sixes = {"sparsity": 0.5, "multiple_of": 6}
    export = {"kind": "vllm", "tensor_parallel": 4}
    budget = _budget(_recipe(export, target=sixes), num_key_value_heads=12)
    # One, two or a multiple of four KV heads; whole ranks of query heads.
    assert set(budget.shapes) == {(0, 0), (4, 4), (8, 8), (12, 12)}
    assert budget.widths == tuple(range(0, 97, 12))
    grouped = _budget(_recipe({"kind": "vllm", "tensor_parallel": 2}))
    assert set(grouped.shapes) == {(0, 0), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4), (6, 6), (12, 6)}
    assert grouped.widths == tuple(range(0, 97, 8))


def test_the_stock_dialect_wants_kv_heads_that_divide_and_attention_in_layer_0() -> None:
    budget = _budget(_recipe({"kind": "vllm", "dialect": "decilm"}))
    assert {kv for _, kv in budget.shapes} == {0, 1, 2, 3, 4, 6}  # not 5 of 12 query heads
    assert not budget.allows(0, (0, 0)) and budget.allows(1, (0, 0))
    assert budget.allows(0, (1, 1))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6])
def test_the_query_heads_that_the_stock_dialect_fills_up_to_can_be_split(ranks: int) -> None:
    export = {"kind": "vllm", "dialect": "decilm", "tensor_parallel": ranks}
    budget = _budget(_recipe(export), num_key_value_heads=12)
    for shapes in product([shape for shape in budget.shapes if shape[1]], repeat=2):
        full = filled_up(tuple(LayerSpec(*shape, 16, 8) for shape in shapes))
        heads = {spec.query_heads for spec in full}
        assert len(heads) == 1 and heads.pop() % ranks == 0
        assert full[0].query_heads <= 12
        assert all(spec.query_heads % spec.kv_heads == 0 for spec in full)


def test_every_export_has_a_say() -> None:
    both = _recipe({"kind": "hf"}, {"kind": "vllm", "dialect": "decilm", "tensor_parallel": 2})
    assert {kv for _, kv in _budget(both).shapes} == {0, 1, 2, 4, 6}
    assert not _budget(both).allows(0, (0, 0))


@pytest.mark.parametrize(
    ("export", "changes", "sentence"),
    [
        ({"tensor_parallel": 8}, {}, "does not split even the dense model's 12 query heads, 6 KV"),
        ({}, {"model_type": "olmo2"}, "vLLM has no layers of its own for olmo2"),
        ({"dialect": "decilm"}, {"model_type": "qwen3"}, "decilm cannot compute qwen3; it can ll"),
        ({}, {"hidden_act": "relu"}, "hidden_act: 'relu', and vLLM's layers of llama compute silu"),
    ],
)
def test_what_vllm_cannot_serve_is_refused_while_planning(
    export: dict[str, Any], changes: dict[str, Any], sentence: str
) -> None:
    recipe = _recipe({"kind": "hf"}, {"kind": "vllm", **export})
    assert _problem(recipe, **changes).startswith("export.1 (vllm): ")
    assert sentence in _problem(recipe, **changes)


def test_uneven_query_heads_are_refused_while_planning() -> None:
    faithful = {"kind": "tyr", "faithful": True}
    message = _problem(_recipe({"kind": "vllm"}, method=faithful))
    assert "cannot express KV heads that serve different numbers of query heads" in message


CHECKED = {"completion": {"prompt": "def", "tokens": 4}}


def test_what_is_measured_is_the_first_export_that_transformers_opens() -> None:
    decilm, hf = {"kind": "vllm", "dialect": "decilm"}, {"kind": "hf"}
    recipe = _recipe(decilm, hf, validate=CHECKED)
    plan = make_plan(recipe, Subject(_facts(), None, "model"), Path())
    assert plan.step("measure-pruned").inputs["artefact"] == "export-hf"
    plugin = _recipe({"kind": "vllm"}, hf, validate=CHECKED)
    plan = make_plan(plugin, Subject(_facts(), None, "model"), Path())
    assert plan.step("measure-pruned").inputs["artefact"] == "export-vllm"
    assert "none of the exports is such" in _problem(_recipe(decilm, validate=CHECKED))


def test_a_search_is_made_again_when_its_exports_allow_other_layouts() -> None:
    def search(*exports: dict[str, Any]) -> str:
        plan = make_plan(_recipe(*exports), Subject(_facts(), None, "model"), Path())
        return plan.step("search-1").fingerprint

    plain = search({"kind": "vllm"})
    assert search({"kind": "vllm", "max_shard_bytes": 1_000_000}) == plain
    assert search({"kind": "vllm", "tensor_parallel": 2}) != plain
    assert search({"kind": "vllm", "dialect": "decilm"}) != plain
