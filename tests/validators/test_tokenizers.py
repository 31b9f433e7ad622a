# SPDX-License-Identifier: Apache-2.0
"""What a tokenizer lacks is taken from its model's configs before lm-eval is given it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunec.validators.loading import open_tokenizer
from prunec.validators.tokenizers import complete_special_tokens


@pytest.fixture
def folder(tiny_llama: Callable[..., Path], tmp_path: Path) -> Path:
    """A model, to write to: its tokenizer names <pad> 0, <s> 1 and </s> 2."""
    return shutil.copytree(tiny_llama(), tmp_path / "model")


def write(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))


def completed(folder: Path) -> tuple[int | None, int | None]:
    """The ids of the end of text and of padding."""
    tokenizer = complete_special_tokens(open_tokenizer(folder), folder)
    return tokenizer.eos_token_id, tokenizer.pad_token_id


def test_what_a_tokenizer_names_stays(folder: Path) -> None:
    write(folder, "config.json", eos_token_id=7)
    assert completed(folder) == (2, 0)


@pytest.mark.parametrize(
    ("generation", "config", "end"),
    [(5, 7, 5), ([6, 5], 7, 6), (None, [8, 9], 8), (None, -1, None)],
)
def test_a_missing_end_is_the_configs(generation: Any, config: Any, end: int, folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    write(folder, "generation_config.json", eos_token_id=generation)
    write(folder, "config.json", eos_token_id=config)
    assert completed(folder) == (end, None)


def test_padding_that_a_model_has_no_embedding_for_becomes_its_end(folder: Path) -> None:
    write(folder, "tokenizer_config.json", pad_token="[PAD]")
    size = len(open_tokenizer(folder))  # [PAD] is the last one
    write(folder, "config.json", vocab_size=size)
    assert completed(folder) == (2, size - 1)
    write(folder, "config.json", vocab_size=size - 1)
    assert completed(folder) == (2, 2)
