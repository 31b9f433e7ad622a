# SPDX-License-Identifier: Apache-2.0
"""What model cards say: only what is so of the folder at hand, and of names nothing but names."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from markdown_it import MarkdownIt

from prunec.compiler.model.facts import Facts, facts_from_config
from prunec.compiler.model.layout import Layout
from prunec.exporters import hf, vllm, vllm_decilm
from prunec.exporters.artefact import Provenance
from tests.exporters.conftest import FREE, PER_LAYER, PROVENANCE, UNIFORM, layout_of

HOSTILE = Provenance(
    recipe_text="# ## Measured\n# ```\n\n## Measured\n\n**Passed.**\n````\n",
    plan={},
    source='org/<img src=x onerror="a()">|`*_[a](http://b)',
    method="tyr",
    calibration="text (<script>alert(1)</script>.txt, `a`.txt, [b](c)), 64 tokens, seed 0",
    hub_id="org/a: [b]\n---\n# c",
    commit="`<b>`",
    recovery="trained back on text (|*a*|<i>), 8 tokens, seed 0",
)


def facts_of(layers: int) -> Facts:
    return facts_from_config({**FREE.config, "num_hidden_layers": layers})


def card(writer: Any, layout: Layout, kind: str, said: Provenance, **options: Any) -> str:
    facts = facts_of(len(layout))
    made = writer.card(Path("nowhere"), facts, layout, kind, torch.float32, said, **options)
    text: str = made.render()
    return text


def sections(text: str) -> dict[str, str]:
    """The sections by their titles, as a reader sees them."""
    rendered = MarkdownIt("commonmark").enable("table").render(text.split("\n---\n", 1)[1])
    parts = re.split(r"<h2>(.*?)</h2>", rendered)
    return dict(zip(parts[1::2], parts[2::2], strict=True)) | {"": parts[0]}


def test_names_in_a_recipe_are_names_on_its_card() -> None:
    text = card(hf, layout_of(facts_of(5), PER_LAYER), "per_layer", HOSTILE)
    head = yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))
    assert head["base_model"] == HOSTILE.hub_id
    found = sections(text)
    assert list(found) == ["Loading", "Layers", "How it was made", ""]
    shown = "".join(found.values())
    tags = set(re.findall(r"<(\w+)", shown))
    assert tags <= {"h1", "p", "code", "pre", "table", "thead", "tbody", "tr", "th", "td"}
    assert "&lt;script&gt;alert(1)" in found["How it was made"]
    assert "**Passed.**" in found["How it was made"] and "<strong>" not in shown


def test_what_was_measured_has_its_place_whatever_a_recipe_says() -> None:
    layout = layout_of(facts_of(5), PER_LAYER)
    made = hf.card(Path("nowhere"), facts_of(5), layout, "per_layer", torch.float32, HOSTILE)
    found = sections(made.render({"Measured": "The verdict."}))
    assert list(found)[:2] == ["Measured", "Loading"]
    assert "The verdict." in found["Measured"]
    assert "The verdict." not in found["How it was made"]


@pytest.mark.parametrize(
    ("kind", "selections", "says", "does_not"),
    [
        ("uniform", UNIFORM, "All layers are alike, so this is a plain", "trust_remote_code"),
        ("per_layer", UNIFORM, "All layers are alike, but", "differ in shape"),
        ("per_layer", PER_LAYER, "Layers differ in shape", "are alike"),
    ],
)
def test_layers_are_said_to_differ_where_they_do(
    kind: str, selections: Any, says: str, does_not: str
) -> None:
    layout = layout_of(facts_of(len(selections)), selections)
    text = card(hf, layout, kind, PROVENANCE)
    assert says in text and does_not not in text


def test_a_method_without_text_is_calibrated_on_none() -> None:
    layout = layout_of(facts_of(3), UNIFORM)
    text = card(hf, layout, "uniform", replace(PROVENANCE, method="magnitude", calibration=None))
    assert "Method `magnitude`, which reads no text." in text
    assert "calibrated" not in text


def test_zeros_in_the_files_are_told() -> None:
    filled = PER_LAYER[1:2] + PER_LAYER[4:]  # 2 query heads, then 4
    text = card(vllm_decilm, layout_of(facts_of(2), filled), "per_layer", PROVENANCE)
    assert "but for zeros" in text and "filled up with zeros" in text
    assert "not zeroed" not in text
    alike = layout_of(facts_of(3), UNIFORM)
    for writer in (vllm_decilm, vllm, hf):
        text = card(writer, alike, "uniform", PROVENANCE)
        assert "not zeroed" in text and "filled up with zeros" not in text


def test_a_graph_says_what_its_weights_are_held_in() -> None:
    pytest.importorskip("onnx")
    from prunec.exporters import onnx

    layout = layout_of(facts_of(3), UNIFORM)
    text = card(onnx, layout, "uniform", PROVENANCE, precision="int4")
    assert "matrices in int4, all else in float32" in text and "bytes of weights" not in text
    text = card(onnx, layout, "uniform", PROVENANCE, precision="float16")
    assert "all in float16" in text and "bytes of weights, 2 a value" in text
