# SPDX-License-Identifier: Apache-2.0
"""Tokenizers as users bring them: half of what they should say is elsewhere, or missing."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Model = Callable[..., Path]

UNIFORM = (
    "--set",
    "method={kind: uniform}",
    "--set",
    "search=null",
    "--set",
    "target.layout=uniform",
)


@pytest.fixture
def model(tiny_llama: Model, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_llama(), tmp_path / "model")


@pytest.fixture
def build(recipe: Path, prunec: Run, model: Path, tmp_path: Path) -> Run:
    """Prunes `model`. What is judged is its perplexity and a completion."""

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        output = ("--output", tmp_path / "out")
        return prunec(
            "build", recipe, *output, "--set", f"model.source={model}", *UNIFORM, *options
        )

    return run


def edit(path: Path, **changes: Any) -> None:
    """Changes a JSON file; None removes a key."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_documents_end_as_the_configs_say_where_the_tokenizer_names_no_end(
    file: str, build: Run, model: Path, tmp_path: Path
) -> None:
    (model / "tokenizer_config.json").unlink()
    for other in {"config.json", "generation_config.json"} - {file}:
        edit(model / other, eos_token_id=None)
    edit(model / file, eos_token_id=[7, 2])
    lines = [json.dumps({"text": "def self " * 4})] * 400
    (tmp_path / "short.jsonl").write_text("\n".join(lines))
    text = {"kind": "jsonl", "files": [str(tmp_path / "short.jsonl")]}
    done = build("--set", "validate=null", "--set", f"calibration.source={json.dumps(text)}")
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / "out" / "hf" / "prunec" / "plan.json").read_text())
    drawn = next(s["fingerprint"] for s in plan["steps"] if s["name"] == "calibration-tokens")
    [stored] = (tmp_path / "out" / ".store" / drawn).glob("*.safetensors")
    ids = load_file(stored)["ids"]
    assert 7 in ids and 2 not in ids


def test_a_text_without_an_end_is_refused(build: Run, model: Path) -> None:
    (model / "tokenizer_config.json").unlink()
    for file in ("config.json", "generation_config.json"):
        edit(model / file, eos_token_id=None)
    done = build()
    assert done.returncode == 3 and "says which token ends a text" in done.stderr
