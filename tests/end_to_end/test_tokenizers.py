# SPDX-License-Identifier: Apache-2.0
"""Tokenizers as users bring them: half of what they should say is elsewhere, or missing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
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


@pytest.mark.parametrize(
    ("tokenizer_class", "exit_code"),
    [("PreTrainedTokenizerFast", 2), (None, 3)],  # plan knows what the first makes of it
)
def test_a_text_without_an_end_is_refused(
    tokenizer_class: str | None, exit_code: int, build: Run, model: Path
) -> None:
    edit(model / "tokenizer_config.json", eos_token=None, tokenizer_class=tokenizer_class)
    for file in ("config.json", "generation_config.json"):
        edit(model / file, eos_token_id=None)
    done = build()
    assert done.returncode == exit_code and "says which token ends a text" in done.stderr


def add_token(model: Path, token: str) -> int:
    """Adds a token to a tokenizer behind all others; its id."""
    path = model / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    number = len(tokenizer["model"]["vocab"])
    added = {"id": number, "content": token, "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"].append(added | flags)
    path.write_text(json.dumps(tokenizer))
    return number


@pytest.fixture
def grown(tiny_llama: Model, tmp_path: Path) -> Path:
    """A model, to write to, whose tokenizer has one token more, <|im_end|>, than it has rows."""
    known = json.loads((tiny_llama() / "tokenizer.json").read_text())["model"]["vocab"]
    folder = shutil.copytree(tiny_llama(vocab=len(known)), tmp_path / "grown")
    assert add_token(folder, "<|im_end|>") == len(known)
    return folder


def test_a_text_with_tokens_beyond_the_vocabulary_is_refused(
    build: Run, grown: Path, tmp_path: Path
) -> None:
    source = ("--set", f"model.source={grown}")
    assert build(*source, "--set", "validate=null").returncode == 0  # the text has none of it
    (tmp_path / "chat.txt").write_text("def self<|im_end|>" * 2000)
    text = {"kind": "text", "files": [str(tmp_path / "chat.txt")]}
    done = build(*source, "--set", f"calibration.source={json.dumps(text)}")
    assert done.returncode == 3
    assert "calibration-tokens: the text holds the token '<|im_end|>', id 2" in done.stderr


def test_what_a_tokenizers_files_say_is_told_by_plan(
    grown: Path, recipe: Path, prunec: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = ("plan", recipe, "--set", f"model.source={grown}", *UNIFORM)
    planned = prunec(*plan)
    assert planned.returncode == 0 and "warning: " in planned.stderr
    assert "1 token that the model has no embedding for, the first '<|im_end|>'" in planned.stderr
    edit(grown / "tokenizer_config.json", eos_token="<|im_end|>")
    refused = prunec(*plan)
    assert refused.returncode == 2 and refused.stderr.startswith("--set model.source=")
    assert "a text ends with token " in refused.stderr and "('<|im_end|>')" in refused.stderr
    (grown / "tokenizer.json").unlink()
    (grown / "tokenizer.model").write_bytes(b"\n")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    refused = prunec(*plan)
    assert refused.returncode == 2 and "sentencepiece; or put a tokenizer.json" in refused.stderr


TURNS = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
#: What a template is asked for, as a recipe says it.
TEMPLATED = {
    "calibration": "calibration.source={kind: chat, files: [chat.jsonl]}",
    "tasks": "validate.tasks={names: [x], chat_template: true}",
}


@pytest.mark.parametrize("asked", TEMPLATED)
@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_chat_template_that_writes_tokens_beyond_the_vocabulary_is_refused_by_plan(
    file: str, asked: str, grown: Path, recipe: Path, prunec: Run
) -> None:
    (recipe.parent / "chat.jsonl").write_text('{"messages": []}')
    if file == "chat_template.jinja":
        (grown / file).write_text(TURNS)
    else:
        edit(grown / file, chat_template=[{"name": "default", "template": TURNS}])
    plan = ("plan", recipe, *UNIFORM, "--set", TEMPLATED[asked], "--set")
    refused = prunec(*plan, f"model.source={grown}")
    assert refused.returncode == 2
    assert "has a chat template that writes '<|im_end|>' (id " in refused.stderr
