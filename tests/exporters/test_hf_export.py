# SPDX-License-Identifier: Apache-2.0
"""Exported folders: what is in them, and that they compute what the masked dense model computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    pipeline,
)

from prunec.compiler.model.checkpoint import Checkpoint
from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.facts import Facts, facts_from_config
from prunec.compiler.model.folder import facts_from_folder
from prunec.compiler.model.headers import read_headers
from prunec.compiler.model.layout import (
    LayerSelection,
    Layout,
    free_selection,
    prunable_parameters,
    total_parameters,
)
from prunec.compiler.model.modeling import classes_of
from prunec.compiler.model.surgery import head_rows, slice_layer
from prunec.exporters import hf
from prunec.exporters.artefact import Provenance, Written

MakeLlama = Callable[..., Path]

RECIPE = "# a recipe with ``` in it\r\nmodel: {source: dense}\n"
PROVENANCE = Provenance(
    recipe_text=RECIPE,
    plan={"steps": ["gram", "shrink"]},
    source="examples/dense",
    method="tyr",
    calibration="2,048 tokens of nothing much, seed 0",
)
TOKENS = torch.arange(3, 99).reshape(4, 24)

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


def selection(query_heads: dict[int, list[int]], neurons: list[int]) -> LayerSelection:
    """A layer that keeps, for each KV head in `query_heads`, those of its query heads."""
    kept = sorted(head for heads in query_heads.values() for head in heads)
    return LayerSelection(tuple(kept), tuple(sorted(query_heads)), tuple(sorted(neurons)))


FREE = facts_from_config(
    {
        "model_type": "llama",
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
)
# 4 query heads on 2 KV heads, 96 neurons. Layer 0 without attention, 2 without MLP, 3 empty.
PER_LAYER = (
    selection({}, list(range(0, 96, 3))),
    selection({0: [1], 1: [2]}, list(range(7))),
    selection({1: [2, 3]}, []),
    selection({}, []),
    selection({0: [0, 1], 1: [2, 3]}, list(range(95))),
)
# Query heads unevenly on their KV heads, and one KV head that only they left.
UNEVEN = (
    free_selection(FREE, (0, 1, 3), range(96)),
    free_selection(FREE, (2, 3), range(5, 60)),
    free_selection(FREE, (0, 2, 3), ()),
    free_selection(FREE, (), range(3)),
    free_selection(FREE, (0,), range(96)),
)
UNIFORM = (
    selection({0: [1], 1: [2]}, list(range(0, 96, 3))),
    selection({0: [0], 1: [3]}, list(range(32))),
    selection({0: [0], 1: [2]}, list(range(64, 96))),
)


def layout_of(facts: Facts, selections: tuple[LayerSelection, ...]) -> Layout:
    return tuple(each.spec(facts.head_dim) for each in selections)


def pruned_tensors(
    source: Path, facts: Facts, selections: tuple[LayerSelection, ...]
) -> Iterator[tuple[str, Tensor]]:
    checkpoint = Checkpoint(source, facts)
    yield facts.family.embedding, checkpoint.tensor(facts.family.embedding)
    for index, kept in enumerate(selections):
        for name, tensor in slice_layer(facts, checkpoint.layer(index), kept).items():
            yield facts.family.in_layer(index, name), tensor
    yield facts.family.final_norm, checkpoint.tensor(facts.family.final_norm)
    if not facts.tied:
        yield facts.family.head, checkpoint.tensor(facts.family.head)


def exported(
    destination: Path,
    source: Path,
    selections: tuple[LayerSelection, ...],
    layout_kind: Any,
    dtype: torch.dtype = torch.float32,
    max_shard_bytes: int = 1 << 30,
) -> Written:
    destination.mkdir(parents=True)
    facts = facts_from_folder(source)
    layout = layout_of(facts, selections)
    tensors = pruned_tensors(source, facts, selections)
    hf.export(
        destination, source, facts, layout, layout_kind, tensors, dtype, max_shard_bytes, PROVENANCE
    )
    return hf.verify(destination, layout, facts)


def masked_dense(source: Path, selections: tuple[LayerSelection, ...]) -> Any:
    """The dense model with whatever goes zeroed: an oracle that shares no code with the export."""
    model = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    for layer, kept in zip(model.model.layers, selections, strict=True):
        head_dim = model.config.head_dim
        attended = torch.zeros(layer.self_attn.o_proj.in_features)
        attended[head_rows(kept.query_heads, head_dim)] = 1
        neurons = torch.zeros(layer.mlp.down_proj.in_features)
        neurons[list(kept.neurons)] = 1
        for linear, mask in ((layer.self_attn.o_proj, attended), (layer.mlp.down_proj, neurons)):
            linear.weight.data *= mask
            if not mask.any() and linear.bias is not None:  # an absent sublayer has no bias
                linear.bias.data.zero_()
    return model


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(TOKENS).logits
    return output


@pytest.fixture(scope="module")
def per_layer(tiny_llama: MakeLlama, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dense model and its per-layer export."""
    source = tiny_llama(layers=5)
    folder = tmp_path_factory.mktemp("exported") / "hf"
    exported(folder, source, PER_LAYER, "per_layer")
    return source, folder


@pytest.fixture(scope="module")
def uneven(tiny_llama: MakeLlama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the same dense model whose query heads lie unevenly on their KV heads."""
    folder = tmp_path_factory.mktemp("uneven") / "hf"
    exported(folder, tiny_llama(layers=5), UNEVEN, "per_layer")
    return folder


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


def test_a_layer_without_attention_records_and_trains_like_any_other(
    per_layer: tuple[Path, Path],
) -> None:
    model = AutoModelForCausalLM.from_pretrained(per_layer[1])
    model.set_attn_implementation("eager")  # the only one that gives attention weights
    recorded = model(TOKENS, output_hidden_states=True, output_attentions=True)
    assert len(recorded.hidden_states) == 6
    assert [tuple(weights.shape[:2]) for weights in recorded.attentions] == [(4, 2), (4, 2), (4, 4)]
    model.train().gradient_checkpointing_enable()
    model(TOKENS, labels=TOKENS, use_cache=False).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_an_artefact_drafts_for_the_dense_model_and_is_drafted_for(
    per_layer: tuple[Path, Path],
) -> None:
    dense, pruned = (AutoModelForCausalLM.from_pretrained(folder) for folder in per_layer)
    greedy = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
    for model, assistant in ((dense, pruned), (pruned, dense)):
        plain = model.generate(TOKENS[:1], **greedy)
        assert torch.equal(model.generate(TOKENS[:1], assistant_model=assistant, **greedy), plain)


def test_a_pipeline_continues_text_with_an_artefact(per_layer: tuple[Path, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(per_layer[1])
    tokenizer = AutoTokenizer.from_pretrained(per_layer[1])
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
    (said,) = generate("def self", max_new_tokens=5, do_sample=False, return_full_text=False)
    ids = tokenizer("def self", return_tensors="pt")
    expected = model.generate(**ids, max_new_tokens=5, do_sample=False)[0, ids.input_ids.shape[1] :]
    assert said["generated_text"] == tokenizer.decode(expected, skip_special_tokens=True)


def test_an_adapter_is_trained_on_an_artefact_and_merged(per_layer: tuple[Path, Path]) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed: `make setup` does")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"])
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(per_layer[1]), config)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        loss = model(TOKENS, labels=TOKENS).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    tuned = logits(model.eval())
    torch.testing.assert_close(logits(model.merge_and_unload()), tuned, atol=1e-4, rtol=0)


def test_a_loaded_model_saves_as_it_was_loaded(
    per_layer: tuple[Path, Path], tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(per_layer[1])
    assert isinstance(AutoModel.from_pretrained(per_layer[1]), type(model.model))
    model.save_pretrained(tmp_path)
    for name in ("per_layer_config", "auto_map", "num_attention_heads", "intermediate_size"):
        first, second = (
            json.loads((folder / "config.json").read_text()) for folder in (per_layer[1], tmp_path)
        )
        assert first[name] == second[name]
    assert (tmp_path / "modeling_prunec_llama.py").exists()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(model))


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


def test_advanced_rope_types_load(tiny_llama: MakeLlama, tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
    source = tiny_llama(layers=5, rope_parameters=rope | {"original_max_position_embeddings": 256})
    exported(tmp_path / "hf", source, PER_LAYER, "per_layer")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    torch.testing.assert_close(
        logits(model), logits(masked_dense(source, PER_LAYER)), atol=1e-5, rtol=0
    )


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
