# SPDX-License-Identifier: Apache-2.0
"""Exported folders compute what the masked dense model computes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from prunec.compiler.model.folder import facts_from_folder
from prunec.compiler.model.layout import (
    LayerSelection,
    free_selection,
    prunable_parameters,
    total_parameters,
)
from tests.exporters.conftest import (
    FREE,
    PER_LAYER,
    TOKENS,
    UNEVEN,
    UNIFORM,
    MakeLlama,
    exported,
    layout_of,
    logits,
    masked_dense,
    selection,
)

# Loads what it is told in a process that cannot import prunec, and keeps the logits.
STRANGER = """
import sys
class NoPrunec:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "prunec":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoPrunec())
from pathlib import Path
import torch
tokens = torch.arange(3, 99).reshape(4, 24)
for folder, out in (sys.argv[1:3], sys.argv[3:5]):
    card = Path(folder, "README.md").read_text()
    said = card.partition("```python")[2].partition("```")[0]
    exec(said.replace("path/to/this/folder", folder))
    assert tokenizer("a")["input_ids"]
    torch.save((type(model).__name__, model(tokens).logits.detach()), out)
"""


def test_both_layouts_load_and_agree_where_prunec_is_not_installed(
    tiny_llama: MakeLlama, per_layer: tuple[Path, Path], tmp_path: Path
) -> None:
    uniform_source, (source, folder) = tiny_llama(), per_layer
    exported(tmp_path / "uniform", uniform_source, UNIFORM, "uniform")
    arguments = [tmp_path / "uniform", tmp_path / "uniform.pt", folder]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, *map(str, arguments), str(tmp_path / "per_layer.pt")],
        env=environment,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "wish to run" not in done.stdout + done.stderr, "transformers asks before it loads"
    name, found = torch.load(tmp_path / "uniform.pt")
    assert name == "LlamaForCausalLM"
    torch.testing.assert_close(
        found, logits(masked_dense(uniform_source, UNIFORM)), atol=1e-5, rtol=0
    )
    name, found = torch.load(tmp_path / "per_layer.pt")
    assert name == "PrunecLlamaForCausalLM"
    torch.testing.assert_close(found, logits(masked_dense(source, PER_LAYER)), atol=1e-5, rtol=0)


@st.composite
def dense_and_selections(
    draw: st.DrawFn,
) -> tuple[dict[str, Any], tuple[LayerSelection, ...]]:
    """A small Llama of any head grouping, and for each of its layers any selection.

    Some keep as many query heads in every KV group that stays, the others any of them.
    """
    kv_heads = draw(st.sampled_from([1, 2, 4]))
    group = draw(st.sampled_from([1, 2, 4]))
    head_dim = draw(st.sampled_from([4, 10, 16]))
    options: dict[str, Any] = {
        "kv_heads": kv_heads,
        "query_heads": kv_heads * group,
        "head_dim": head_dim,
        "ffn": draw(st.sampled_from([1, 13, 40])),
        "layers": draw(st.integers(1, 4)),
        "tied": draw(st.booleans()),
        "biased": draw(st.booleans()),
    }
    selections = []
    for _ in range(options["layers"]):
        per_group = draw(st.integers(1, group))
        in_group = st.sets(st.integers(0, group - 1), min_size=per_group, max_size=per_group)
        groups = draw(st.sets(st.integers(0, kv_heads - 1)))
        heads = {kv: [kv * group + query for query in draw(in_group)] for kv in groups}
        neurons = draw(st.sets(st.integers(0, options["ffn"] - 1)))
        if draw(st.booleans()):
            selections.append(selection(heads, sorted(neurons)))
            continue
        any_heads = sorted(draw(st.sets(st.integers(0, options["query_heads"] - 1))))
        grouping = replace(FREE, query_heads=options["query_heads"], kv_heads=kv_heads)
        selections.append(free_selection(grouping, any_heads, sorted(neurons)))
    return options, tuple(selections)


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(case=dense_and_selections())
def test_any_legal_layout_computes_what_the_masked_dense_model_computes(
    case: tuple[dict[str, Any], tuple[LayerSelection, ...]],
    tiny_llama: MakeLlama,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    options, selections = case
    source = tiny_llama(**options)
    folder = tmp_path_factory.mktemp("any") / "hf"
    written = exported(folder, source, selections, "per_layer")
    facts = facts_from_folder(source)
    layout = layout_of(facts, selections)
    assert written.prunable_parameters == prunable_parameters(facts, layout)
    assert written.parameters == total_parameters(facts, layout)
    model = AutoModelForCausalLM.from_pretrained(folder)
    dense = masked_dense(source, selections)
    torch.testing.assert_close(logits(model), logits(dense), atol=1e-5, rtol=1e-5)


def test_advanced_rope_types_load(tiny_llama: MakeLlama, tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
    source = tiny_llama(layers=5, rope_parameters=rope | {"original_max_position_embeddings": 256})
    exported(tmp_path / "hf", source, PER_LAYER, "per_layer")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    torch.testing.assert_close(
        logits(model), logits(masked_dense(source, PER_LAYER)), atol=1e-5, rtol=0
    )


STATIC = {"cache_implementation": "static", "disable_compile": True}


@pytest.mark.parametrize(
    ("backend", "mode"),
    [
        ("sdpa", {"use_cache": False}),
        ("sdpa", {}),
        ("eager", {}),
        ("sdpa", STATIC),
        ("sdpa", STATIC | {"prefill_chunk_size": 4}),
    ],
    ids=["uncached", "cached", "eager", "static cache", "static cache, chunked prefill"],
)
@pytest.mark.parametrize("kept", [PER_LAYER, UNEVEN], ids=["even", "uneven"])
def test_padded_batches_generate_what_single_prompts_generate(
    per_layer: tuple[Path, Path],
    uneven: Path,
    kept: tuple[LayerSelection, ...],
    backend: str,
    mode: dict[str, Any],
) -> None:
    folder = per_layer[1] if kept is PER_LAYER else uneven
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=backend)
    dense = masked_dense(per_layer[0], kept)
    prompts = [TOKENS[0, :9], TOKENS[1, :4]]
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    alone = [
        dense.generate(prompt[None], use_cache=False, **settings)[0, -12:] for prompt in prompts
    ]
    batch = torch.zeros(2, 9, dtype=torch.long)
    for row, prompt in zip(batch, prompts, strict=True):
        row[9 - len(prompt) :] = prompt
    together = model.generate(batch, attention_mask=(batch > 0).long(), **settings, **mode)
    assert torch.equal(together[:, 9:], torch.stack(alone))
