# SPDX-License-Identifier: Apache-2.0
"""Every tensor of a checkpoint is read, is known to do nothing, or is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunec.compiler.model.census import unused_tensors
from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.folder import facts_from_folder
from prunec.compiler.model.headers import INDEX, SINGLE

Model = Callable[..., Path]

#: Of the second of two layers.
ATTENTION = "model.layers.1.self_attn"


@pytest.fixture
def copied(tiny_family: Model, tmp_path: Path) -> Model:
    """A model of its own to write to: `copied(family, **options)`."""

    def copy(family: str = "llama", **options: Any) -> Path:
        return shutil.copytree(tiny_family(family, layers=2, **options), tmp_path / "model")

    return copy


def add(folder: Path, **tensors: torch.Tensor) -> None:
    """Puts tensors into a checkpoint's file; their names have `__` for a dot."""
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file(load_file(folder / SINGLE) | named, folder / SINGLE, {"format": "pt"})


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder: Path) -> tuple[str, str]:
    with pytest.raises(ModelError) as caught:
        facts_from_folder(folder)
    assert "\n" not in caught.value.message and caught.value.hint
    return caught.value.message, caught.value.hint


@pytest.mark.parametrize(
    ("family", "name", "hint"),
    [
        ("llama", f"{ATTENTION}.q_proj.bias", "attention_bias: true"),
        ("llama", "model.layers.0.mlp.up_proj.bias", "mlp_bias: true"),
        ("mistral", f"{ATTENTION}.q_proj.bias", "save it again"),
        ("qwen2", f"{ATTENTION}.o_proj.bias", "save it again"),
        ("llama", "lm_head.bias", "save it again"),
        ("llama", f"{ATTENTION}.q_norm.weight", "save it again"),
        ("llama", "score.weight", "save it again"),
        ("llama", "transformer.wte.weight", "save it again"),
        ("llama", "model.layers.2.mlp.up_proj.weight", "num_hidden_layers: 2"),
        ("llama", f"{ATTENTION}.q_proj.lora_A.weight", "merge it"),
        ("llama", f"{ATTENTION}.q_proj.weight_scale", "quantised"),
    ],
)
def test_a_tensor_that_the_model_would_lose_is_refused_by_name(
    family: str, name: str, hint: str, copied: Model
) -> None:
    folder = copied(family)
    add(folder, **{name: torch.ones(8)})
    message, advice = refused(folder)
    assert name in message and hint in advice


def test_many_tensors_are_named_by_a_few_and_their_number(copied: Model) -> None:
    folder = copied(biased=True)
    edit_config(folder, attention_bias=False, mlp_bias=False)
    message, advice = refused(folder)
    assert "model.layers.0.mlp.down_proj.bias, " in message and "11 tensors more" in message
    assert "attention_bias: true and mlp_bias: true" in advice


def test_a_tensor_that_does_nothing_is_left_out_and_told(copied: Model) -> None:
    folder = copied()
    names = (
        "v_head.summary.weight",
        "v_head.summary.bias",
        f"{ATTENTION}.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
        f"{ATTENTION}.masked_bias",
    )
    add(folder, **{name: torch.ones(8) for name in names})
    assert unused_tensors(facts_from_folder(folder)) == sorted(names)


# --- heads ----------------------------------------------------------------------------------------


def test_a_tied_head_that_is_stored_too_has_to_be_the_embedding(copied: Model) -> None:
    folder = copied(tied=True)
    embedding = load_file(folder / SINGLE)["model.embed_tokens.weight"]
    add(folder, lm_head__weight=embedding.clone())
    facts = facts_from_folder(folder)
    assert facts.tied and unused_tensors(facts) == []
    almost = embedding.clone()
    almost[-1, -1] += 1
    for head in (almost, embedding.double(), embedding[:-1].clone()):
        add(folder, lm_head__weight=head)
        message, advice = refused(folder)
        assert "lm_head.weight beside model.embed_tokens.weight" in message
        assert "tie_word_embeddings to false" in advice


def test_a_tied_head_is_compared_block_by_block_through_several_shards(
    copied: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunec.compiler.model.headers._BLOCK", 1000)
    folder = copied(shard_bytes=60_000)
    edit_config(folder, tie_word_embeddings=True)
    assert "lm_head.weight" in refused(folder)[0]
    shards = json.loads((folder / INDEX).read_text())["weight_map"]
    embedding, head = (shards[f"{each}.weight"] for each in ("model.embed_tokens", "lm_head"))
    assert embedding != head
    same = load_file(folder / embedding)["model.embed_tokens.weight"].clone()
    save_file(load_file(folder / head) | {"lm_head.weight": same}, folder / head)
    assert facts_from_folder(folder).tied


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rename", "says"),
    [
        ("pytorch_model.bin", "as pickles only (pytorch_model.bin)"),
        ("model-q4.gguf", "as GGUF only (model-q4.gguf)"),
        ("consolidated.safetensors", "as safetensors of other names (consolidated.safetensors)"),
    ],
)
def test_weights_in_another_form_are_called_by_their_name(
    rename: str, says: str, copied: Model
) -> None:
    folder = copied()
    (folder / SINGLE).rename(folder / rename)
    assert says in refused(folder)[0]
    (folder / "config.json").unlink()  # as GGUF files come
    assert says in refused(folder)[0]


def test_shards_without_an_index_are_refused(copied: Model) -> None:
    folder = copied(shard_bytes=60_000)
    (folder / INDEX).unlink()
    message, _ = refused(folder)
    assert "(model-00001-of-0000" in message and f"without {SINGLE} or {INDEX}" in message


def test_a_file_beside_an_index_of_others_is_refused(copied: Model, tiny_llama: Model) -> None:
    folder = copied(shard_bytes=60_000)
    shutil.copy(tiny_llama(layers=2, seed=1) / SINGLE, folder)
    assert "that names other files" in refused(folder)[0]


def test_a_tensor_in_two_shards_is_refused(copied: Model) -> None:
    folder = copied(shard_bytes=60_000)
    first, *_, last = sorted({*json.loads((folder / INDEX).read_text())["weight_map"].values()})
    twice = {"model.norm.weight": torch.ones(64)}
    for shard in (first, last):
        save_file(load_file(folder / shard) | twice, folder / shard)
    with pytest.raises(ModelError, match=r"'model.norm.weight' is in both model-00001"):
        facts_from_folder(folder)


def test_an_adapter_is_no_model(copied: Model, tmp_path: Path) -> None:
    folder = copied()
    (folder / "adapter_config.json").write_text("{}")
    assert "adapter" in refused(folder)[0]
    (folder / "config.json").unlink()
    message, advice = refused(folder)
    assert "adapter" in message and "merge_and_unload" in advice


@pytest.mark.parametrize("strip", [True, False])
def test_a_model_inside_another_is_told_from_one_that_lacks_tensors(
    strip: bool, copied: Model
) -> None:
    folder = copied()
    weights = load_file(folder / SINGLE)
    odd = {n.removeprefix("model.") if strip else f"policy.{n}": t for n, t in weights.items()}
    save_file(odd, folder / SINGLE)
    message, advice = refused(folder)
    assert "has no tensor model.embed_tokens.weight" in message
    assert ("embed_tokens.weight" if strip else "policy.model.embed_tokens.weight") in advice
