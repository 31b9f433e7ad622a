# SPDX-License-Identifier: Apache-2.0
"""A tokenizer's files, read without loading it, say what transformers makes of them."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.tokenizer_files import read_tokenizer

KEYS = ("bos_token", "eos_token", "pad_token")


@pytest.fixture
def folder(tiny_llama: Callable[..., Path], tmp_path: Path) -> Path:
    """A model's folder, to write to."""
    return shutil.copytree(tiny_llama(), tmp_path / "model")


@pytest.fixture
def pieces(folder: Path) -> Path:
    """The same with a SentencePiece model for a tokenizer."""
    for package in ("google.protobuf", "tiktoken"):  # which transformers takes for such files
        pytest.importorskip(package)
    sentencepiece = pytest.importorskip("sentencepiece")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    text = folder / "text"
    text.write_text("def self return import class None for in range if else\n" * 40)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=40,
        model_type="bpe",
        minloglevel=2,
    )
    write(
        folder,
        "tokenizer_config.json",
        tokenizer_class="LlamaTokenizer",
        bos_token="<s>",
        eos_token="</s>",
    )
    return folder


def write(folder: Path, name: str, **content: Any) -> None:
    (folder / name).write_text(json.dumps(content))


def same_as_transformers(folder: Path) -> dict[str, int]:
    """The special ids by the files. Those, and every other, are transformers' own."""
    found, loaded = read_tokenizer(folder), AutoTokenizer.from_pretrained(str(folder))
    assert found.ids == loaded.get_vocab()
    named = {key: getattr(loaded, f"{key}_id") for key in KEYS}
    special = {key: number for key, number in found.special.items() if key in KEYS}
    assert special == {key: number for key, number in named.items() if number is not None}
    return special


def test_tokenizer_json_and_its_config(folder: Path) -> None:
    assert same_as_transformers(folder) == {"bos_token": 1, "eos_token": 2, "pad_token": 0}
    spelt = {"__type": "AddedToken", "content": "<s>", "normalized": False}
    fast = "PreTrainedTokenizerFast"
    write(folder, "tokenizer_config.json", tokenizer_class=fast, eos_token=spelt, pad_token="[PAD]")
    added = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    assert same_as_transformers(folder) == {"eos_token": 1, "pad_token": added}
    (folder / "tokenizer_config.json").unlink()
    assert same_as_transformers(folder) == {}


def test_special_tokens_map(folder: Path) -> None:
    write(folder, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    write(folder, "special_tokens_map.json", eos_token="</s>", bos_token={"content": "<s>"})
    assert same_as_transformers(folder) == {"bos_token": 1, "eos_token": 2}


def test_a_sentencepiece_model(pieces: Path) -> None:
    assert same_as_transformers(pieces) == {"bos_token": 1, "eos_token": 2}


@pytest.mark.parametrize("package", ["sentencepiece", "google.protobuf"])
def test_a_package_that_is_missing_is_named(
    package: str, pieces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModelError, match="alone, which takes") as caught:
        read_tokenizer(pieces)
    assert f"pip install {package.removeprefix('google.')}" in str(caught.value.hint)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    monkeypatch.setitem(sys.modules, "google.protobuf", None)
    with pytest.raises(ModelError) as caught:
        read_tokenizer(pieces)
    assert "pip install protobuf sentencepiece;" in str(caught.value.hint)
    write(pieces, "tokenizer.json")  # whatever it is: `tokenizers` reads it
    read_tokenizer(pieces)


@pytest.mark.parametrize("file", ["tokenizer.model", "qwen.tiktoken"])
def test_tiktoken_is_needed_for_its_files(
    file: str, pieces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pieces / "tokenizer.model").unlink()
    (pieces / file).write_text("IQ== 0\nIg== 1\n")
    assert read_tokenizer(pieces).ids == {}
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(ModelError, match=f"is {file} alone, which takes tiktoken"):
        read_tokenizer(pieces)


def test_tekken_alone_and_a_damaged_model_are_refused(pieces: Path) -> None:
    (pieces / "tokenizer.model").write_bytes(b"\n\xff\xff damaged")
    with pytest.raises(ModelError, match=r"tokenizer\.model cannot be read"):
        read_tokenizer(pieces)
    (pieces / "tokenizer.model").rename(pieces / "tekken.json")
    with pytest.raises(ModelError, match=r"tekken\.json only"):
        read_tokenizer(pieces)


@pytest.mark.parametrize("content", ["{", "[]", "\udcff"])
def test_damaged_json_is_refused(content: str, folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        sound = (folder / name).read_text() if (folder / name).exists() else "{}"
        (folder / name).write_text(content, "utf-8", "surrogateescape")
        with pytest.raises(ModelError, match=name):
            read_tokenizer(folder)
        (folder / name).write_text(sound)


@pytest.mark.parametrize("odd", [None, [], {}, "x", 3, [[]], [3], {"a": "b"}, {"a": None, "": -1}])
def test_json_of_another_structure_names_nothing(odd: object, folder: Path) -> None:
    for model in (odd, {"vocab": odd}):
        write(folder, "tokenizer.json", model=model, added_tokens=odd)
        write(folder, "tokenizer_config.json", added_tokens_decoder=odd, eos_token=odd)
        write(folder, "added_tokens.json", a=odd)
        read_tokenizer(folder)
