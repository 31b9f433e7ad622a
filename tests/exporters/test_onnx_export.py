# SPDX-License-Identifier: Apache-2.0
"""ONNX folders: what ONNX Runtime computes from them, and what is and is not in them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from prunec.compiler.model.checkpoint import Checkpoint
from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.facts import Facts, facts_from_config
from prunec.compiler.model.families import FAMILIES
from prunec.compiler.model.folder import facts_from_folder
from prunec.compiler.model.layout import (
    LayerSelection,
    Layout,
    prunable_parameters,
    total_parameters,
)
from prunec.compiler.model.surgery import head_rows, slice_layer
from prunec.exporters import onnx_rules
from prunec.exporters.artefact import Provenance, Written
from prunec.exporters.genai_config import genai_config
from prunec.exporters.hf_rules import LayoutKind, attention_is_legal
from tests.published_configs import PUBLISHED

onnx = pytest.importorskip("onnx", reason="needs the packages of prunec[onnx]")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the packages of prunec[onnx]")
pytest.importorskip("onnxscript", reason="needs the packages of prunec[onnx]")
import numpy as np  # noqa: E402

from prunec.exporters import onnx as exporter  # noqa: E402

MakeModel = Callable[..., Path]

PROVENANCE = Provenance("method: {kind: tyr}\n", {}, "examples/dense", "tyr", "no text")
EVERY = (0, 1, 2, 3)
#: Windows shorter than the texts below, scaled rotary embeddings, tied embeddings, biases.
SPECIAL: dict[str, dict[str, Any]] = {
    "llama": {
        "biased": True,
        "rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4},
    },
    "mistral": {"sliding_window": 7},
    "qwen2": {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2},
    "qwen3": {"head_dim": 24},
    "gemma2": {"sliding_window": 7, "query_pre_attn_scalar": 16, "tied": True},
    "gemma3_text": {"sliding_window": 7, "sliding_window_pattern": 2, "tied": True},
}


def selection(query_heads: tuple[int, ...], neurons: range) -> LayerSelection:
    """Of four query heads on two KV heads."""
    return LayerSelection(query_heads, tuple(sorted({q // 2 for q in query_heads})), tuple(neurons))


# Layer 0 without attention, 2 without MLP, 3 empty; the others thinner in one way or another.
PER_LAYER = (
    selection((), range(0, 96, 3)),
    selection((1, 2), range(7)),
    selection((2, 3), range(0)),
    selection((), range(0)),
    selection(EVERY, range(1, 96)),
)
#: Published configs whose rope has a branch, which a graph does not have.
BRANCHING = ("Phi-3-mini 128k", "Phi-4-mini")
UNIFORM = (selection((0, 3), range(0, 96, 3)), selection((1, 2), range(1, 96, 3)))


def legal(
    facts: Facts, kind: LayoutKind, wanted: tuple[LayerSelection, ...]
) -> tuple[LayerSelection, ...]:
    """`wanted`, with whole attention in a family whose heads cannot go alone, and with a KV head
    for each query head where the dense model has that."""
    if not attention_is_legal(facts, kind, 2, 2):
        wanted = tuple(selection(EVERY if k.query_heads else (), range(96)[::3]) for k in wanted)
    if facts.kv_heads == facts.query_heads:
        return tuple(replace(each, kv_heads=each.query_heads) for each in wanted)
    return wanted


def layout_of(facts: Facts, selections: tuple[LayerSelection, ...]) -> Layout:
    return tuple(each.spec(facts.head_dim) for each in selections)


def pruned(source: Path, selections: tuple[LayerSelection, ...]) -> Iterator[tuple[str, Tensor]]:
    facts = facts_from_folder(source)
    checkpoint, family = Checkpoint(source, facts), facts.family
    yield family.embedding, checkpoint.tensor(family.embedding)
    for index, kept in enumerate(selections):
        for name, tensor in slice_layer(facts, checkpoint.layer(index), kept).items():
            yield family.in_layer(index, name), tensor
    yield family.final_norm, checkpoint.tensor(family.final_norm)
    if not facts.tied:
        yield family.head, checkpoint.tensor(family.head)


def exported(
    folder: Path,
    source: Path,
    selections: tuple[LayerSelection, ...],
    kind: LayoutKind,
    precision: onnx_rules.Precision = "float32",
) -> Written:
    folder.mkdir(parents=True)
    facts = facts_from_folder(source)
    layout, tensors = layout_of(facts, selections), pruned(source, selections)
    exporter.export(
        folder,
        source,
        facts,
        layout,
        kind,
        tensors,
        torch.bfloat16,
        PROVENANCE,
        precision=precision,
    )
    return exporter.verify(folder, layout, facts)


def masked(source: Path, selections: tuple[LayerSelection, ...]) -> Any:
    """The dense model in which nothing reads the units that go."""
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    for layer, kept in zip(model.model.layers, selections, strict=True):
        output, down = layer.self_attn.o_proj, layer.mlp.down_proj
        attended, neurons = torch.zeros(output.in_features), torch.zeros(down.in_features)
        attended[head_rows(kept.query_heads, layer.self_attn.head_dim)] = 1
        neurons[list(kept.neurons)] = 1
        for linear, mask in ((output, attended), (down, neurons)):
            linear.weight.data *= mask
            if not mask.any() and linear.bias is not None:  # an absent sublayer has no bias
                linear.bias.data.zero_()
    return model


class Reader:
    """What a user of ONNX Runtime writes: feeds tokens and carries the cache along."""

    def __init__(self, folder: Path, batch: int) -> None:
        self.session = onnxruntime.InferenceSession(
            folder / "model.onnx", providers=["CPUExecutionProvider"]
        )
        self.names = [value.name for value in self.session.get_outputs()]
        self.mask = np.zeros((batch, 0), np.int64)
        self.cache = {
            value.name: np.zeros(
                (batch, value.shape[1], 0, value.shape[3]),
                np.float16 if value.type == "tensor(float16)" else np.float32,
            )
            for value in self.session.get_inputs()
            if value.name.startswith("past_key_values")
        }

    def read(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        fresh = np.ones(ids.shape, np.int64) if mask is None else mask.numpy()
        self.mask = np.concatenate([self.mask, fresh], axis=1)
        positions = (self.mask.cumsum(1) - 1).clip(0)[:, -ids.shape[1] :]
        given = {"input_ids": ids.numpy(), "attention_mask": self.mask, "position_ids": positions}
        found = dict(zip(self.names, self.session.run(None, given | self.cache), strict=True))
        self.cache = {n: found[n.replace("past_key_values", "present")] for n in self.cache}
        return torch.from_numpy(found["logits"]).float()


QUICK = ("llama", "phi3", "gemma2", "Phi-4")


#: Of a uniform layout, a family of each kind is enough, and of configs without a head's size; the
#: others take minutes.
@pytest.mark.parametrize(
    ("model_type", "kind"),
    [(family, "per_layer") for family in FAMILIES]
    + [
        pytest.param(name, "uniform", marks=() if name in QUICK else pytest.mark.slow)
        for name in (*FAMILIES, *PUBLISHED)
        if name not in BRANCHING
    ]
    + [
        pytest.param(name, "per_layer", marks=() if name == "Qwen2.5" else pytest.mark.slow)
        for name in PUBLISHED
        if name not in BRANCHING
    ],
)
def test_onnx_runtime_answers_as_the_masked_model_does(
    tiny_llama: MakeModel,
    published_model: MakeModel,
    tmp_path: Path,
    model_type: str,
    kind: LayoutKind,
) -> None:
    wanted = PER_LAYER if kind == "per_layer" else UNIFORM
    if model_type in PUBLISHED:
        source = published_model(model_type, layers=len(wanted))
    else:
        special = SPECIAL.get(model_type, {})
        source = tiny_llama(model_type=model_type, layers=len(wanted), **special)
    facts = facts_from_folder(source)
    selections = legal(facts, kind, wanted)
    written = exported(tmp_path / "onnx", source, selections, kind)
    assert written.parameters == total_parameters(facts, layout_of(facts, selections))
    assert written.prunable_parameters == prunable_parameters(facts, layout_of(facts, selections))
    dense = masked(source, selections)

    # Two texts of 12 and 7 tokens, the shorter one padded on its left; then five more of each, in
    # one piece; then one at a time, greedily.
    texts = [torch.arange(3, 15)[None], torch.arange(60, 67)[None]]
    ids = torch.cat([texts[0], torch.cat([torch.zeros(1, 5, dtype=torch.long), texts[1]], 1)])
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    reader = Reader(tmp_path / "onnx", 2)
    found = [reader.read(ids, mask)]
    more = torch.arange(100, 110).reshape(2, 5)
    found.append(reader.read(more))
    for _ in range(8):
        found.append(reader.read(found[-1][:, -1:].argmax(-1)))
    said = torch.cat(found, 1)
    for row, (text, padding) in enumerate(zip(texts, (0, 5), strict=True)):
        start = torch.cat([text, more[row : row + 1]], 1)
        settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
        whole = dense.generate(start, use_cache=False, pad_token_id=0, **settings)
        with torch.no_grad():
            expected = dense(whole).logits[0]
        torch.testing.assert_close(said[row, padding:], expected, atol=5e-5, rtol=0)
        assert torch.equal(said[row, 16:-1].argmax(-1), whole[0, start.shape[1] :])


@pytest.fixture(scope="module")
def per_layer(tiny_llama: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dense model and its per-layer export."""
    source = tiny_llama(layers=5)
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    exported(folder, source, PER_LAYER, "per_layer")
    return source, folder


def test_the_cache_has_each_layers_own_kv_heads_and_no_place_for_layers_without_attention(
    per_layer: tuple[Path, Path],
) -> None:
    graph = onnx.load(per_layer[1] / "model.onnx", load_external_data=False).graph
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    cached = {"1": 2, "2": 1, "4": 2}
    assert shapes == {
        "input_ids": ["batch", "sequence"],
        "attention_mask": ["batch", "total"],
        "position_ids": ["batch", "sequence"],
        "logits": ["batch", "sequence", 300],
        **{
            f"{name}.{layer}.{state}": ["batch", heads, length, 16]
            for name, length in (("past_key_values", "past"), ("present", "total"))
            for layer, heads in cached.items()
            for state in ("key", "value")
        },
    }


def test_the_same_export_twice_is_the_same_bytes_and_names_no_place(
    per_layer: tuple[Path, Path], tmp_path: Path
) -> None:
    source, folder = per_layer
    exported(tmp_path / "onnx", source, PER_LAYER, "per_layer")
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert (tmp_path / "onnx" / path.relative_to(folder)).read_bytes() == content
        assert b"site-packages" not in content
        assert str(Path(__file__).parents[2]).encode() not in content


def test_weights_lie_beside_the_graph_and_tied_ones_once(
    tiny_llama: MakeModel, tmp_path: Path
) -> None:
    written = exported(tmp_path / "onnx", tiny_llama(layers=2, tied=True), UNIFORM, "uniform")
    assert 0 <= written.weight_bytes - 4 * written.parameters < 64 * 21  # alignment of 21 tensors
    assert (tmp_path / "onnx/model.onnx").stat().st_size < 50_000


@pytest.mark.parametrize(
    ("precision", "bytes_a_value", "tolerance"),
    [("float16", 2, 0.02), ("int8", 1 + 4 / 32, 0.05), ("int4", 0.5 + 4 / 32, 0.8)],
)
def test_a_lower_precision_is_smaller_and_near(
    tiny_llama: MakeModel,
    tmp_path: Path,
    precision: onnx_rules.Precision,
    bytes_a_value: float,
    tolerance: float,
) -> None:
    source = tiny_llama(layers=2, vocab=3000)
    written = exported(tmp_path / "onnx", source, UNIFORM, "uniform", precision)
    embedding = 3000 * 64
    kept = embedding * (bytes_a_value if precision == "float16" else 4)
    expected = kept + (written.parameters - embedding) * bytes_a_value
    assert written.weight_bytes == pytest.approx(expected, rel=0.03)
    ids = torch.arange(3, 27)[None]
    with torch.no_grad():
        dense = masked(source, UNIFORM)(ids).logits
    found = Reader(tmp_path / "onnx", 1).read(ids)
    assert 1e-6 < (found - dense).std() / dense.std() < tolerance


def test_verify_notices_a_graph_that_computes_something_else(
    per_layer: tuple[Path, Path], tmp_path: Path
) -> None:
    source, folder = per_layer
    for path in folder.glob("*"):
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    facts = facts_from_folder(source)
    layout = layout_of(facts, PER_LAYER)
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    attention = next(node for node in model.graph.node if node.op_type == "Attention")
    attention.attribute[0].f *= 1.1
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="logits differ from transformers"):
        exporter.verify(tmp_path, layout, facts)
    with pytest.raises(ModelError, match=r"layers\.4\.mlp\.down_proj\.weight is \(64, 95\)"):
        exporter.verify(folder, (*layout[:-1], replace(layout[-1], ffn=96)), facts)
    with pytest.raises(ModelError, match=r"past_key_values\.2\.key is \(1, 16\)"):
        fatter = replace(layout[2], query_heads=4, kv_heads=2)
        exporter.verify(folder, (*layout[:2], fatter, *layout[3:]), facts)


@pytest.mark.skipif(not find_spec("onnxruntime_genai"), reason="needs onnxruntime-genai")
@pytest.mark.parametrize("beams", [1, 3])
def test_onnxruntime_genai_runs_layers_of_any_shape(
    per_layer: tuple[Path, Path], beams: int
) -> None:
    import onnxruntime_genai as genai

    source, folder = per_layer
    prompt = list(range(5, 14))
    model = genai.Model(str(folder))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(
        max_length=30, min_length=30, batch_size=1, num_beams=beams, do_sample=False
    )
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array([prompt], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    expected = masked(source, PER_LAYER).generate(
        torch.tensor([prompt]), max_length=30, min_length=30, num_beams=beams, do_sample=False
    )
    assert list(generator.get_sequence(0)) == expected[0].tolist()


def test_what_generation_needs_is_told_to_onnxruntime_genai(per_layer: tuple[Path, Path]) -> None:
    told = json.loads((per_layer[1] / "genai_config.json").read_text())
    model = told["model"]
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == (1, 2, 0)
    assert (model["context_length"], model["decoder"]["num_hidden_layers"]) == (512, 5)


@pytest.mark.parametrize(
    ("generation", "config", "tokenizer", "told"),
    [
        ({}, {}, {"bos_token": 1, "eos_token": 2}, {"bos": 1, "eos": 2, "pad": 2}),
        ({}, {"eos_token_id": None}, {"eos_token": 2, "pad_token": 3}, {"eos": 2, "pad": 3}),
        ({}, {"eos_token_id": [5, 6]}, {"eos_token": 2}, {"eos": [5, 6], "pad": 5}),
        (
            {"eos_token_id": [7], "pad_token_id": [8, 9], "bos_token_id": [4]},
            {"eos_token_id": 5, "pad_token_id": 0},
            {"pad_token": 3},
            {"bos": 4, "eos": 7, "pad": 8},
        ),
        # None of the vocabulary of 300: -1 stands for no token.
        ({"pad_token_id": -1}, {"eos_token_id": [300, 2]}, {}, {"eos": 2, "pad": 2}),
        ({}, {}, {}, {}),
    ],
)
def test_onnxruntime_genai_is_told_the_tokens_that_the_model_or_its_tokenizer_names(
    generation: dict[str, Any],
    config: dict[str, Any],
    tokenizer: dict[str, int],
    told: dict[str, Any],
) -> None:
    sizes = dict.fromkeys(("head_dim", "num_attention_heads", "num_key_value_heads"), 4)
    whole = {**sizes, "hidden_size": 16, "vocab_size": 300, "max_position_embeddings": 64}
    found = genai_config(whole | config, generation, tokenizer, (), "model.onnx")["model"]
    ids = {name: value for name, value in found.items() if name.endswith("_token_id")}
    assert ids == {f"{name}_token_id": value for name, value in told.items()}


@pytest.mark.skipif(not find_spec("onnxruntime_genai"), reason="needs onnxruntime-genai")
def test_onnxruntime_genai_stops_at_any_end_and_speaks_the_default_of_several_templates(
    tiny_llama: MakeModel, tmp_path: Path
) -> None:
    import onnxruntime_genai as genai

    source = shutil.copytree(tiny_llama(layers=1), tmp_path / "dense")
    prompt = list(range(5, 14))
    greedy = (
        masked(source, UNIFORM[:1])
        .generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None)[0]
        .tolist()
    )
    end = greedy.index(greedy[-4])  # the first time that it is generated
    generation = {"eos_token_id": [299, greedy[end]], "pad_token_id": [0, 2], "bos_token_id": 1}
    (source / "generation_config.json").write_text(json.dumps(generation))
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings["chat_template"] = [
        {"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "{{ messages[0]['content'] }}!"},
    ]
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    exported(tmp_path / "onnx", source, UNIFORM[:1], "uniform")

    model = genai.Model(str(tmp_path / "onnx"))
    asked = json.dumps([{"role": "user", "content": "def"}])
    assert genai.Tokenizer(model).apply_chat_template(asked, add_generation_prompt=False) == "def!"
    generator = genai.Generator(model, genai.GeneratorParams(model))
    generator.append_tokens(np.array([prompt], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    assert list(generator.get_sequence(0)) == greedy[:end]


def test_a_missing_package_and_a_rope_that_branches_are_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = {
        "model_type": "llama",
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
    }
    assert onnx_rules.limits(facts_from_config(config), "uniform") is None
    scaled = facts_from_config(config | {"rope_scaling": {"type": "dynamic", "factor": 2.0}})
    assert "rope type dynamic" in str(onnx_rules.limits(scaled, "uniform"))
    for name, published in PUBLISHED.items():
        problem = onnx_rules.limits(facts_from_config(published), "uniform")
        assert (problem is not None and "rope type longrope" in problem) == (name in BRANCHING)
    monkeypatch.setattr(
        onnx_rules, "find_spec", lambda name: None if name == "onnxscript" else object()
    )
    problem = onnx_rules.limits(facts_from_config(config), "uniform")
    assert problem == "needs the Python packages onnxscript: pip install 'prunec[onnx]'"
