# SPDX-License-Identifier: Apache-2.0
"""What windows begin with: what the tokenizer itself puts before a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from prunec.compiler.calibration.prefix import begun, prefix_of
from prunec.compiler.calibration.sources import SourceError
from prunec.compiler.model.bos import lacks_bos

SPECIAL = ["<s>", "</s>", "<mask>"]


def _folder(folder: Path, template: str | None, bos: str | None = "<s>") -> Path:
    """A tokenizer of single bytes, as transformers saves it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: at for at, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if template:
        ids = [(token, vocab[token]) for token in SPECIAL]
        tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=ids)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token="</s>"
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("template", "auto", "always"),
    [
        (None, [], [0]),
        ("$A", [], [0]),
        ("<s> $A", [0], [0]),
        ("<s> $A </s>", [0], [0]),
        ("$A </s>", [], [0]),
        ("<mask> <s> $A", [2, 0], [2, 0]),
    ],
)
def test_windows_begin_as_the_tokenizer_begins_a_text(
    template: str | None, auto: list[int], always: list[int], tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(_folder(tmp_path, template))
    found = {bos: prefix_of(tokenizer, bos) for bos in ("auto", "always", "never")}
    assert found == {"auto": auto, "always": always, "never": []}


def test_a_token_that_there_is_not_begins_nothing(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(_folder(tmp_path, None, bos=None))
    assert prefix_of(tokenizer, "auto") == []
    with pytest.raises(SourceError, match="the tokenizer has no BOS token"):
        prefix_of(tokenizer, "always")


@pytest.mark.parametrize(
    ("template", "config", "lacking"),
    [
        (None, {"bos_token": None}, True),
        (None, {"bos_token": "<s>"}, False),
        (None, {"bos_token": {"content": "<s>"}}, False),
        ("$A </s>", {"tokenizer_class": "Qwen2Tokenizer"}, True),
        ("<s> $A", {"bos_token": None}, False),  # it begins a text all the same
        (None, {"tokenizer_class": "LlamaTokenizer"}, False),  # the class brings one
    ],
)
def test_files_tell_whether_there_is_such_a_token(
    template: str | None, config: dict[str, Any], lacking: bool, tmp_path: Path
) -> None:
    _folder(tmp_path, template, bos=None)
    named = {"tokenizer_class": "PreTrainedTokenizerFast"} | config
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    assert lacks_bos(tmp_path) is lacking


def test_every_window_gets_its_own_prefix() -> None:
    windows = begun(torch.tensor([[5, 6], [7, 8]]), [2, 0])
    assert windows.tolist() == [[2, 0, 5, 6], [2, 0, 7, 8]]
    assert begun(torch.tensor([[5, 6]]), []).tolist() == [[5, 6]]
