# SPDX-License-Identifier: Apache-2.0
"""The texts of a recipe as its steps draw them: what windows begin with, who reads what."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from prunec.compiler.diagnostics import RecipeProblemError
from prunec.compiler.plan import Plan
from prunec.compiler.planner import make_plan
from prunec.compiler.recipe_file import load_recipe
from prunec.compiler.steps import RUNNERS
from prunec.compiler.steps.context import Context
from prunec.compiler.store import Store
from prunec.compiler.subject import subject_for_build
from tests.conftest import make_model

WORDS = ["def", "self", "return", "import", "class", "None", "for", "in", "range", "else", "text"]
BOS, END = 1, 2
DRAWN = ("tokens", "generate", "mixture")
RECOVER = {"kind": "blockwise", "tokens": 512, "held_out_tokens": 128}


@pytest.fixture(scope="module")
def begins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer begins every text with its BOS token."""
    folder = make_model(tmp_path_factory.mktemp("begins"))
    file = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
    )
    tokenizer.save(str(file))
    return folder


@pytest.fixture
def ask(tmp_path: Path, begins: Path) -> Callable[..., Path]:
    """A recipe on texts of one file each, by what it says otherwise."""
    for name in ("fit.txt", "judge.txt"):
        words = random.Random(name).choices(WORDS, k=6000)
        (tmp_path / name).write_text(" ".join(words), encoding="utf-8")

    def write(model: Path = begins, **sections: Any) -> Path:
        asked: dict[str, Any] = {
            "schema_version": 1,
            "model": {"source": str(model), "dtype": "float32"},
            "method": {"kind": "uniform"},
            "target": {"sparsity": 0.5, "layout": "uniform", "multiple_of": 8},
            "calibration": {
                "source": {"kind": "text", "files": ["fit.txt"]},
                "tokens": 1024,
                "sequence_length": 32,
            },
            "export": [{"kind": "hf"}],
        }
        for name, section in sections.items():
            given = asked.get(name, {}) if isinstance(section, dict) else {}
            asked[name] = given | section if isinstance(section, dict) else section
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(asked), encoding="utf-8")
        return path

    return write


def planned(path: Path) -> tuple[Any, Any, Plan]:
    recipe = load_recipe(path)
    subject = subject_for_build(recipe.model)
    return recipe, subject, make_plan(recipe, subject, path.parent)


def drawn(path: Path) -> dict[str, Tensor]:
    """[windows, length] token ids of every text that a recipe reads, by the step that draws it."""
    recipe, subject, plan = planned(path)
    assert subject.folder is not None
    store = Store(path.parent / ".store")
    output = path.parent / "out"
    context = Context(recipe, "", path.parent, subject.folder, output, subject, plan, store)
    found = {}
    for step in plan.steps:
        if step.kind in DRAWN:
            entry = store.entry(step.fingerprint)
            entry.folder.mkdir(parents=True, exist_ok=True)
            entry.finish(RUNNERS[step.kind](context, step, entry, lambda *told: None))
            found[step.name] = entry.require_tensors("ids")[0]["ids"]
    return found


def test_windows_of_every_text_begin_as_the_tokenizer_begins_one(
    ask: Callable[..., Path],
) -> None:
    judged = {"source": {"kind": "text", "files": ["judge.txt"]}, "tokens": 256}
    texts = drawn(
        ask(
            method={"kind": "adapruner", "trials": 2, "calibration": {"lengths": [16, 24, 64]}},
            search={"tokens": 256},
            recover=RECOVER,
            validate={"perplexity": judged | {"sequence_length": 16}},
        )
    )
    assert {name: tuple(ids.shape) for name, ids in texts.items()} == {
        "pool-16": (64, 16),
        "pool-24": (43, 24),
        "pool-64": (16, 64),
        "search-tokens": (8, 32),
        "evaluation-tokens": (16, 16),
        "recovery-tokens": (16, 32),
        "held-out-tokens": (4, 32),
    }
    for ids in texts.values():
        assert (ids[:, 0] == BOS).all() and not (ids[:, 1:] == BOS).any()


@pytest.mark.parametrize("source", [{"kind": "text", "files": ["fit.txt"]}, {"kind": "self"}])
def test_what_windows_begin_with_can_be_left_out_text_by_text(
    source: dict[str, Any], ask: Callable[..., Path]
) -> None:
    judged = {"source": {"kind": "text", "files": ["judge.txt"]}, "sequence_length": 32}
    texts = drawn(
        ask(
            calibration={"source": source, "bos": "never"},
            validate={"perplexity": judged | {"tokens": 256}},
        )
    )
    assert texts["calibration-tokens"].shape == (32, 32)
    assert not (texts["calibration-tokens"][:, 0] == BOS).all()
    assert (texts["evaluation-tokens"][:, 0] == BOS).all()


def test_text_that_the_model_writes_begins_once(ask: Callable[..., Path]) -> None:
    ids = drawn(ask(calibration={"source": {"kind": "self"}}))["calibration-tokens"]
    assert (ids[:, 0] == BOS).all() and not (ids[:, 1] == BOS).any()


def test_a_token_that_no_tokenizer_has_is_refused_when_planning(
    ask: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = make_model(tmp_path_factory.mktemp("without"))
    config = model / "tokenizer_config.json"
    named = json.loads(config.read_text()) | {"bos_token": None}
    config.write_text(json.dumps(named))
    with pytest.raises(RecipeProblemError, match=r"calibration.bos is always, and the tokenizer"):
        planned(ask(model, calibration={"bos": "always"}))


def test_windows_beyond_the_positions_that_a_model_knows_are_told(
    ask: Callable[..., Path],
) -> None:
    longer = {"sequence_length": 1024, "tokens": 4096}
    *_, plan = planned(ask(calibration=longer))
    assert plan.warnings == (
        "calibration reads windows of 1,024 tokens, and the model knows 512 positions: what lies "
        "beyond is nothing that it was trained for",
    )
    assert not planned(ask())[2].warnings
