# SPDX-License-Identifier: Apache-2.0
"""What is in an exported folder, and that it is noticed where that is not what it should be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.facts import facts_from_config
from prunec.compiler.model.folder import facts_from_folder
from prunec.compiler.model.headers import read_headers
from prunec.compiler.model.layout import free_selection
from prunec.compiler.model.modeling import classes_of
from prunec.exporters import hf
from tests.exporters.conftest import (
    FREE,
    PER_LAYER,
    PROVENANCE,
    RECIPE,
    TOKENS,
    UNIFORM,
    MakeLlama,
    exported,
    layout_of,
    logits,
    masked_dense,
)


def test_uneven_query_heads_are_told_in_the_config_and_on_the_card(
    per_layer: tuple[Path, Path], uneven: Path
) -> None:
    shapes = json.loads((uneven / "config.json").read_text())["per_layer_config"]
    assert [shapes.get(layer, {}).get("query_groups") for layer in "01234"] == [
        *([2, 1], None, [1, 2], None, None)
    ]
    assert shapes["3"]["skip"] == ["attention"]
    config = AutoConfig.from_pretrained(uneven)
    assert [config.shape_of(layer)[1] for layer in range(5)] == [2, 1, 2, 0, 1]
    assert "| 0 | 3 (2 + 1) | 2 | 96 |" in (uneven / "README.md").read_text(encoding="utf-8")
    model = AutoModelForCausalLM.from_pretrained(uneven)
    cache = model(TOKENS).past_key_values
    assert [layer.keys.shape[1] for layer in cache.layers[:4]] == [2, 1, 2, 1]


@pytest.mark.parametrize("groups", [[3], [2, 2], [0, 3], [4, -1]])
def test_query_groups_that_do_not_add_up_are_refused(uneven: Path, groups: list[int]) -> None:
    content = json.loads((uneven / "config.json").read_text())
    content["per_layer_config"]["0"]["query_groups"] = groups
    ours = classes_of("llama")
    with pytest.raises(ValueError, match="layer 0 has query_groups"), torch.device("meta"):
        ours.causal_lm(ours.config.from_dict(content))


def test_uneven_query_heads_are_not_uniform(tiny_llama: MakeLlama, tmp_path: Path) -> None:
    alike = (free_selection(FREE, (0, 1, 3), range(96)),) * 3
    with pytest.raises(ModelError, match="cannot be written as a uniform model"):
        exported(tmp_path / "hf", tiny_llama(), alike, "uniform")


def test_the_folder_carries_tokenizer_generation_config_licence_recipe_and_plan(
    tiny_llama: MakeLlama, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in tiny_llama().iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    (source / "generation_config.json").write_bytes(b'{"temperature": 0.25,\r\n "do_sample": true}')
    (source / "chat_template.jinja").write_bytes(b"{{ messages }}\r\n")
    (source / "LICENSE").write_bytes(b"Do as you like.\n")
    (source / "README.md").write_text("---\nlicense: mit\n---\nA dense model.\n")
    exported(tmp_path / "hf", source, UNIFORM, "uniform", dtype=torch.bfloat16)
    carried = ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]
    for name in [*carried, "chat_template.jinja", "LICENSE"]:
        assert (tmp_path / "hf" / name).read_bytes() == (source / name).read_bytes()
    assert (tmp_path / "hf/prunec/recipe.yaml").read_bytes() == RECIPE.encode()
    assert json.loads((tmp_path / "hf/prunec/plan.json").read_text()) == PROVENANCE.plan
    card = (tmp_path / "hf/README.md").read_text(encoding="utf-8")
    assert "license: mit" in card
    assert "````yaml\n# a recipe with ``` in it" in card
    assert AutoTokenizer.from_pretrained(tmp_path / "hf")("def")["input_ids"]
    assert {info.dtype for info in read_headers(tmp_path / "hf").values()} == {"BF16"}


def test_shards_stay_below_their_limit_and_load_through_the_index(
    tiny_llama: MakeLlama, tmp_path: Path
) -> None:
    limit = 80_000
    source = tiny_llama(layers=5, tied=True, shard_bytes=limit)
    exported(tmp_path / "hf", source, PER_LAYER, "per_layer", max_shard_bytes=limit)
    shards = sorted((tmp_path / "hf").glob("*.safetensors"))
    assert len(shards) > 2
    assert max(shard.stat().st_size for shard in shards) < limit + 10_000  # and its header
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    torch.testing.assert_close(
        logits(model), logits(masked_dense(source, PER_LAYER)), atol=1e-5, rtol=0
    )


def test_the_same_export_twice_is_the_same_bytes(tiny_llama: MakeLlama, tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        exported(tmp_path / name, tiny_llama(layers=5), PER_LAYER, "per_layer")
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        contents.append({path.relative_to(tmp_path / name): path.read_bytes() for path in files})
    assert contents[0] == contents[1]


def test_a_head_width_that_the_source_leaves_implicit_is_written(tiny_llama: MakeLlama) -> None:
    config = json.loads((tiny_llama() / "config.json").read_text())
    del config["head_dim"]  # then it is hidden size by query heads, of which half are to go
    facts = facts_from_config(config)
    pruned = hf.model_config(facts, layout_of(facts, UNIFORM), "uniform", torch.float32)
    assert (pruned["num_attention_heads"], pruned["head_dim"]) == (2, 16)


def test_verify_notices_weights_that_are_not_the_layout(
    per_layer: tuple[Path, Path],
) -> None:
    source, folder = per_layer
    facts = facts_from_folder(source)
    layout = layout_of(facts, PER_LAYER)
    with pytest.raises(ModelError, match=r"layers\.4\.mlp\.down_proj\.weight is \(64, 95\)"):
        hf.verify(folder, (*layout[:-1], replace(layout[-1], ffn=96)), facts)


@pytest.mark.parametrize("change", [{"intermediate_size": 33}, {"num_attention_heads": 3}])
def test_verify_notices_a_config_that_is_not_the_weights(
    tiny_llama: MakeLlama, tmp_path: Path, change: dict[str, int]
) -> None:
    facts = facts_from_folder(tiny_llama())
    exported(tmp_path / "hf", tiny_llama(), UNIFORM, "uniform")
    path = tmp_path / "hf/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError):
        hf.verify(tmp_path / "hf", layout_of(facts, UNIFORM), facts)
