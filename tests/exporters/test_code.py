# SPDX-License-Identifier: Apache-2.0
"""A folder is trusted with code only if all code that it brings or leads to is ours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from prunec.compiler.model.modeling import classes_of
from prunec.exporters.code import brings_only_our_code


def name_class(folder: Path, reference: object) -> None:
    (folder / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": reference}}))


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A folder with the code that an export of a per-layer Llama brings."""
    folder = tmp_path / "ours"
    folder.mkdir()
    for file in classes_of("llama").files:
        shutil.copyfile(file, folder / file.name)
    name_class(folder, f"{classes_of('llama').module}.{classes_of('llama').causal_lm.__name__}")
    return folder


def add_to_ours(folder: Path) -> None:
    file = next(folder.glob("*.py"))
    file.write_text(file.read_text("utf-8") + "\n", encoding="utf-8")


def link(folder: Path) -> None:
    (folder.parent / "other").mkdir()
    (folder / "linked").symlink_to(folder.parent / "other")


def in_tokenizer(folder: Path) -> None:
    named = {"auto_map": {"AutoTokenizer": [None, "tokens.Theirs"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


def deeper(folder: Path) -> None:
    named = {"text_config": {"auto_map": {"AutoModel": "/elsewhere/modeling.Theirs"}}}
    (folder / "config.json").write_text(json.dumps(named))


def test_what_we_write_is_trusted(ours: Path, tiny_llama: Callable[..., Path]) -> None:
    assert brings_only_our_code(ours)
    assert brings_only_our_code(tiny_llama())


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "modeling_theirs.py").write_text(""),
        add_to_ours,
        link,
        in_tokenizer,
        deeper,
        lambda folder: name_class(folder, "org/repository--modeling_prunec.Theirs"),
        lambda folder: name_class(folder, f"{folder.parent}/modeling_prunec.Theirs"),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
    ],
    ids=[
        "a file of theirs",
        "our file, changed",
        "a linked folder",
        "the tokenizer's class",
        "a nested config",
        "another repository",
        "a path",
        "no JSON",
        "an adapter",
    ],
)
def test_what_leads_to_code_of_others_is_not(change: Callable[[Path], object], ours: Path) -> None:
    change(ours)
    assert not brings_only_our_code(ours)
