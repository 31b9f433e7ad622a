# SPDX-License-Identifier: Apache-2.0
"""Special ids as three files name them, and ids that a model has no embedding for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, AutoModelForCausalLM

from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.facts import Facts, facts_from_config
from prunec.compiler.model.special_ids import (
    SpecialIds,
    check_ids,
    check_padding,
    check_tokenizer,
    settle_special_ids,
)

NOBODY: dict[str, Any] = {"bos": None, "eos": None, "pad": None}


def test_the_tokenizer_comes_before_the_configs() -> None:
    config = {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 4}
    generation = {"bos_token_id": 11, "eos_token_id": 12, "pad_token_id": [14, 15]}
    assert settle_special_ids(config, {}, **NOBODY) == SpecialIds(1, (2, 3), 4)
    assert settle_special_ids(config, generation, **NOBODY) == SpecialIds(11, (12, 2, 3), 14)
    own = settle_special_ids(config, generation, bos=0, eos=3, pad=0)
    assert own == SpecialIds(0, (3, 12, 2), 0)
    assert (own.end, SpecialIds(None, (), None).end) == (3, None)


@pytest.mark.parametrize("value", [None, -1, [], [None], True, "</s>", 2.0])
def test_what_is_no_id_names_none(value: object) -> None:
    config = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), value)
    assert settle_special_ids(config, config, **NOBODY) == SpecialIds(None, (), None)


def test_an_id_beyond_the_vocabulary_is_named_with_its_token() -> None:
    check_ids([], 5, str)
    check_ids([0, 4], 5, str)
    with pytest.raises(ModelError, match=r"'<5>', id 5, and the model's vocabulary ends at id 4"):
        check_ids([0, 5, 2], 5, lambda n: f"<{n}>")


# --- what a tokenizer's files say of a model ------------------------------------------------------


def _folder(tmp_path: Path, *tokens: str, **named: str) -> Path:
    """A tokenizer with these tokens, some of which are named as special."""
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    return tmp_path


def _facts(vocab_size: int, **config: Any) -> Facts:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "vocab_size": vocab_size}
    return facts_from_config({"model_type": "llama"} | sizes | heads | config)


def test_an_embedding_of_more_rows_than_there_are_tokens_is_normal(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "a", "b", eos_token="b", bos_token="a", pad_token="b")
    for vocab_size in (2, 64):
        assert check_tokenizer(_facts(vocab_size), folder) == []


def test_tokens_beyond_the_vocabulary_are_warned_of(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "a", "b", "c", eos_token="b", pad_token="[PAD]")
    [warning] = check_tokenizer(_facts(2, eos_token_id=[1, 9]), folder)
    assert "2 tokens that the model has no embedding for, the first 'c' (id 2;" in warning


@pytest.mark.parametrize(
    ("named", "config", "says"),
    [
        ({"eos_token": "c"}, {"eos_token_id": 1}, "a text ends with token 2 ('c')"),
        ({"eos_token": "b", "bos_token": "c"}, {}, "a text begins with token 2 ('c')"),
        ({"eos_token": "<end>"}, {}, "a text ends with token 3 ('<end>')"),
        ({}, {"eos_token_id": 77}, "a text ends with token 77, and"),
    ],
)
def test_an_end_or_a_beginning_beyond_the_vocabulary_is_refused(
    named: dict[str, str], config: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError) as caught:
        check_tokenizer(_facts(2, **config), _folder(tmp_path, "a", "b", "c", **named))
    assert says in caught.value.message


@pytest.mark.parametrize("pad", [None, -1, 0, 7])
def test_a_padding_id_that_transformers_takes_is_taken(pad: int | None) -> None:
    check_padding(_facts(8, pad_token_id=pad))
    _open_in_transformers(pad)


@pytest.mark.parametrize("pad", [8, [0], "0"])
def test_a_padding_id_that_transformers_refuses_is_refused(pad: object) -> None:
    with pytest.raises(ModelError, match=r"pad_token_id: .* no token id below its vocab_size"):
        check_padding(_facts(8, pad_token_id=pad))
    with pytest.raises((AssertionError, StrictDataclassFieldValidationError)):
        _open_in_transformers(pad)


def _open_in_transformers(pad: object) -> None:
    with torch.device("meta"):
        AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**dict(_facts(8, pad_token_id=pad).config))
        )
