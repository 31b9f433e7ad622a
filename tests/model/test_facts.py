# SPDX-License-Identifier: Apache-2.0
"""A checkpoint that cannot be used is refused in one sentence, whatever is wrong with it."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.facts import facts_from_config
from prunec.compiler.model.folder import facts_from_folder
from prunec.compiler.model.headers import INDEX, SINGLE, read_header
from prunec.compiler.model.layout import dense_layout, tensor_shapes
from tests.published_configs import PUBLISHED

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 37,
    "hidden_size": 24,
    "intermediate_size": 41,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
}


@pytest.fixture
def folder(tiny_llama: Callable[..., Path], tmp_path: Path) -> Path:
    return shutil.copytree(tiny_llama(layers=2, hidden=32, head_dim=8, ffn=24), tmp_path / "model")


@pytest.fixture
def sharded(tiny_llama: Callable[..., Path], tmp_path: Path) -> Path:
    dense = tiny_llama(layers=2, hidden=32, head_dim=8, ffn=24, shard_bytes=20_000)
    return shutil.copytree(dense, tmp_path / "sharded")


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        facts_from_folder(folder)
    assert "\n" not in caught.value.message
    return caught.value.message


def _edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- what is read ---------------------------------------------------------------------------------


def test_shards_and_a_single_file_give_the_same_facts(folder: Path, sharded: Path) -> None:
    one, many = facts_from_folder(folder), facts_from_folder(sharded)
    assert len({info.shard for info in many.tensors.values()}) > 2
    assert {name: (i.dtype, i.shape) for name, i in one.tensors.items()} == {
        name: (i.dtype, i.shape) for name, i in many.tensors.items()
    }
    stored = load_file(folder / SINGLE)
    assert {n: i.shape for n, i in one.tensors.items()} == {
        n: tuple(t.shape) for n, t in stored.items()
    }
    assert (one.layers, one.hidden_size, one.query_heads, one.kv_heads) == (2, 32, 4, 2)
    assert (one.head_dim, one.ffn, one.vocab_size, one.tied) == (8, 24, 300, False)
    assert one.biased == frozenset()


def test_what_a_config_leaves_out_is_what_llama_takes_it_to_be() -> None:
    facts = facts_from_config(CONFIG)
    assert (facts.kv_heads, facts.head_dim, facts.tied) == (6, 4, False)
    assert facts_from_config(CONFIG | {"head_dim": None}).head_dim == 4
    biased = facts_from_config(CONFIG | {"attention_bias": True, "mlp_bias": True}).biased
    assert len(biased) == 7
    assert len(facts_from_config(CONFIG | {"attention_bias": True}).biased) == 4


def test_null_kv_heads_are_as_many_as_query_heads_and_missing_ones_the_familys_default() -> None:
    config = CONFIG | {"model_type": "mistral", "num_attention_heads": 16, "hidden_size": 64}
    assert facts_from_config(config | {"num_key_value_heads": None}).kv_heads == 16
    assert facts_from_config(config).kv_heads == 8
    with pytest.raises(ModelError, match=r"12 query heads on 8 KV heads \(the default\)"):
        facts_from_config(config | {"num_attention_heads": 12})


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_gives_its_models_facts_and_stays_as_it_is(name: str) -> None:
    """transformers is asked what the model is; it writes into the rope parameters it is given."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from prunec.compiler.model.decoder import dense_config

    config = deepcopy(PUBLISHED[name])
    facts = facts_from_config(config)
    dense_config(facts)
    assert config == facts.config == PUBLISHED[name]
    stock = AutoConfig.for_model(**config)
    with torch.device("meta"):
        shapes = {
            n: tuple(t.shape)
            for n, t in AutoModelForCausalLM.from_config(stock).state_dict().items()
        }
    if stock.tie_word_embeddings:
        del shapes["lm_head.weight"]
    assert tensor_shapes(facts, dense_layout(facts)) == shapes


def test_a_model_of_several_parts_is_refused_with_the_name_of_its_language_model() -> None:
    with pytest.raises(ModelError, match="'gemma3' is not supported") as caught:
        facts_from_config({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}})
    assert "its language model is gemma3_text: save that alone" in str(caught.value.hint)


def test_every_rope_that_transformers_computes_is_accepted() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for kind in ("default", *ROPE_INIT_FUNCTIONS):
        for form in ({"rope_parameters": {"rope_type": kind}}, {"rope_scaling": {"type": kind}}):
            assert facts_from_config(CONFIG | form).layers == 3
    part = {"partial_rotary_factor": 0.75}
    assert facts_from_config(CONFIG | {"model_type": "phi3"} | part).head_dim == 4
    assert facts_from_config(CONFIG | {"partial_rotary_factor": 1.0}).head_dim == 4


# --- configs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "mamba"}, "'mamba' is not supported"),
        ({"model_type": None}, "not supported"),
        ({"model_type": ["llama"]}, "not supported"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"num_key_value_heads": 4}, "6 query heads on 4 KV heads"),
        ({"hidden_size": 0}, "hidden_size: 0"),
        ({"hidden_size": None}, "hidden_size: None"),
        ({"hidden_size": 24.0}, "hidden_size: 24.0"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers: '3'"),
        ({"vocab_size": True}, "vocab_size: True"),
        ({"intermediate_size": -8}, "intermediate_size: -8"),
        ({"head_dim": [8]}, "head_dim: [8]"),
        ({"rope_scaling": {"type": "mrope"}}, "rope type 'mrope'"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, "rope type ['yarn']"),
        ({"rope_parameters": {"full_attention": {"rope_type": "su"}}}, "rope type 'su'"),
        ({"model_type": "phi3", "rope_scaling": {"type": "linear"}}, "knows default, longrope"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: 0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor: 0.5"),
    ],
)
def test_a_config_that_cannot_be_pruned_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError) as caught:
        facts_from_config(CONFIG | changes)
    assert said in caught.value.message


@given(
    st.dictionaries(
        st.sampled_from([*CONFIG, "num_key_value_heads", "head_dim", "tie_word_embeddings"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
            lambda inner: (
                st.lists(inner, max_size=2)
                | st.dictionaries(st.text(max_size=2), inner, max_size=2)
            ),
            max_leaves=3,
        ),
    )
)
@settings(max_examples=150, deadline=None)
def test_no_config_raises_anything_but_a_model_error(changes: dict[str, Any]) -> None:
    for config in (changes, CONFIG | changes):
        try:
            facts = facts_from_config(config)
        except ModelError:
            continue
        assert min(facts.layers, facts.hidden_size, facts.kv_heads, facts.head_dim, facts.ffn) > 0
        assert facts.query_heads % facts.kv_heads == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read"),
        (b"{", "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"[1]", "JSON object"),
        (b"[" * 200_000, "cannot be read"),
        (b"null", "JSON object"),
    ],
)
def test_a_config_that_is_no_json_object_is_refused(
    folder: Path, content: bytes, said: str
) -> None:
    (folder / "config.json").write_bytes(content)
    assert said in refused(folder)


# --- tensors that the config calls for ------------------------------------------------------------


def test_a_folder_without_a_config_or_weights_is_refused(tmp_path: Path, folder: Path) -> None:
    assert "config.json is missing" in refused(tmp_path)
    (folder / "config.json").rename(tmp_path / "config.json")
    assert "config.json is missing" in refused(folder)
    assert "holds neither" in refused(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 3}, "has no tensor model.layers.2."),
        ({"intermediate_size": 25}, "down_proj.weight has shape (32, 24)"),
        ({"num_key_value_heads": 4}, "k_proj.weight has shape (16, 32)"),
        ({"head_dim": 4}, "k_proj.weight has shape (16, 32)"),
        ({"hidden_size": 33}, "embed_tokens.weight has shape (300, 32)"),
        ({"vocab_size": 301}, "embed_tokens.weight has shape (300, 32)"),
        ({"attention_bias": True}, "has no tensor model.layers.0.self_attn.k_proj.bias"),
    ],
)
def test_weights_of_another_shape_than_the_config_says_are_refused(
    folder: Path, changes: dict[str, Any], said: str
) -> None:
    _edit_config(folder, **changes)
    assert said in refused(folder)


def test_a_head_is_called_for_unless_it_is_tied(folder: Path) -> None:
    weights = load_file(folder / SINGLE)
    del weights["lm_head.weight"]
    save_file(weights, folder / SINGLE)
    assert "no tensor lm_head.weight" in refused(folder)
    _edit_config(folder, tie_word_embeddings=True)
    assert facts_from_folder(folder).tied


# --- shards ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight_map", "said"),
    [
        (None, "no weight_map"),
        ({}, "no weight_map"),
        (["model.safetensors"], "no weight_map"),
        ({"a": "../elsewhere.safetensors"}, "outside its folder"),
        ({"a": "/etc/passwd"}, "outside its folder"),
        ({"a": "sub/model.safetensors"}, "outside its folder"),
        ({"a": ".."}, "missing"),
        ({"a": ""}, "missing"),
        ({"a": "gone.safetensors"}, "missing"),
        ({"a": "n\0l.safetensors"}, "missing"),
        ({"a": "long" * 200}, "missing"),
        ({"a": 3}, "missing"),
    ],
)
def test_an_index_that_leads_nowhere_is_refused(
    sharded: Path, weight_map: object, said: str
) -> None:
    (sharded / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert said in refused(sharded)


def test_a_shard_of_another_model_does_not_pass(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    shard = index["weight_map"]["model.layers.1.mlp.up_proj.weight"]
    save_file({"stranger": torch.zeros(2)}, sharded / shard)
    assert "has no tensor" in refused(sharded)


# --- headers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 7, 8, 9, 500, -1])
def test_a_file_that_is_cut_short_is_refused(folder: Path, keep: int) -> None:
    content = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(content[:keep])
    message = refused(folder)
    assert "cut short" in message or "promises" in message


def test_a_file_with_bytes_to_spare_is_refused(folder: Path) -> None:
    with (folder / SINGLE).open("ab") as file:
        file.write(b"\0")
    assert "promises" in refused(folder)


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1, 100_000_001, 1_000_000])
def test_a_header_that_claims_too_much_is_never_read(tmp_path: Path, length: int) -> None:
    path = tmp_path / SINGLE
    with path.open("wb") as file:
        file.write(struct.pack("<Q", length))
        file.truncate(600_000)  # sparse
    with pytest.raises(ModelError, match="not a safetensors file"):
        read_header(path)


def test_a_header_beyond_the_formats_limit_is_refused_even_if_the_file_is_as_large(
    tmp_path: Path,
) -> None:
    path = tmp_path / SINGLE
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(200_000_000)  # sparse
    with pytest.raises(ModelError, match="not a safetensors file"):
        read_header(path)


def _write(path: Path, header: bytes, body: bytes = b"") -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + body)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b'"text"',
        b"7",
        b"null",
        b"{",
        b"\xff\xff",
        b"[" * 200_000,
        b'{"a": 1}',
        b'{"a": {}}',
        b'{"a": {"dtype": "F32", "shape": 3, "data_offsets": [0, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [], "data_offsets": [0]}}',
        b'{"a": {"dtype": "F32", "shape": [], "data_offsets": [0, "4"]}}',
        b'{"a": {"dtype": "F32", "shape": [], "data_offsets": [0, null]}}',
        b'{"a": {"dtype": "F32", "shape": [], "data_offsets": [0, []]}}',
        b'{"a": {"dtype": "F32", "shape": [], "data_offsets": [0, NaN]}}',
        b'{"a": {"dtype": "F32", "shape": [], "data_offsets": [0, -1e400]}}',
        b'{"a": {"dtype": "F32", "shape": [], "data_offsets": [0, ' + b"9" * 5000 + b"]}}",
    ],
)
def test_a_header_that_describes_no_tensors_is_refused(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / SINGLE
    _write(path, header)
    with pytest.raises(ModelError) as caught:
        read_header(path)
    assert "\n" not in caught.value.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["dtype", "shape", "data_offsets", "__metadata__", "model.norm.weight"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
ENTRY = st.fixed_dictionaries({"dtype": JSON, "shape": JSON, "data_offsets": st.lists(JSON)})


@given(
    st.binary(max_size=200)
    | st.builds(
        lambda header, body: struct.pack("<Q", len(header)) + header + body,
        st.one_of(
            st.binary(max_size=60),
            JSON.map(lambda value: json.dumps(value).encode()),
            st.dictionaries(st.text(max_size=3), ENTRY, max_size=3).map(
                lambda value: json.dumps(value).encode()
            ),
        ),
        st.binary(max_size=100),
    )
)
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_bytes_raise_anything_but_a_model_error(folder: Path, content: bytes) -> None:
    (folder / SINGLE).write_bytes(content)
    refused(folder)
