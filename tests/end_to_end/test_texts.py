# SPDX-License-Identifier: Apache-2.0
"""The texts of a recipe as its steps draw them: what windows begin with, who reads what."""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoTokenizer

from prunec.compiler.calibration.sources import SourceError
from prunec.compiler.diagnostics import RecipeProblemError, UserError
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


def _rows(folder: Path, count: int = 900) -> dict[str, Any]:
    """A source of rows of which each says in every word which one it is."""
    lines = [json.dumps({"text": f"{number:03d} " * 24}) for number in range(count)]
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return {"kind": "jsonl", "files": ["rows.jsonl"]}


def _read(ids: Tensor, model: Path) -> set[str]:
    """The rows that windows hold whole words of."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    text = "/".join(tokenizer.decode_batch(ids.tolist()))
    return set(re.findall(r"(?<=[\s])\d{3}(?=\s)", text))


def test_no_document_serves_two_purposes(
    ask: Callable[..., Path], begins: Path, tmp_path: Path
) -> None:
    rows = _rows(tmp_path) | {"holdout": 0.2}
    path = ask(
        method={"kind": "tyr"},
        target={"sparsity": 0.5, "layout": "per_layer", "multiple_of": 8},
        calibration={"source": rows, "seed": 3},
        search={"tokens": 512, "seed": 5},
        recover=RECOVER | {"seed": 7},
        validate={
            "perplexity": {"tokens": 512, "sequence_length": 32},  # what calibration holds out
            "elsewhere": {"again": {"source": rows, "tokens": 512, "sequence_length": 64}},
        },
    )
    read = {name: _read(ids, begins) for name, ids in drawn(path).items()}
    assert all(len(rows) > 1 for rows in read.values())
    fitted = read["calibration-tokens"] | read["recovery-tokens"]
    judged = read["evaluation-tokens"] | read["evaluation-tokens-again"]
    for one, other in itertools.combinations(
        [fitted, read["search-tokens"], read["held-out-tokens"], judged], 2
    ):
        assert not one & other


def test_how_much_a_recovery_reads_changes_nothing_that_was_calibrated_on(
    ask: Callable[..., Path], tmp_path: Path
) -> None:
    rows = _rows(tmp_path)
    found = []
    for tokens in (512, 2048):
        recover = RECOVER | {"tokens": tokens}
        *_, plan = planned(ask(calibration={"source": rows}, recover=recover))
        found.append(plan.step("calibration-tokens").fingerprint)
    assert found[0] == found[1]


def test_what_is_held_out_stays_so_whatever_else_a_recipe_says(
    ask: Callable[..., Path], begins: Path, tmp_path: Path
) -> None:
    rows = _rows(tmp_path) | {"holdout": 0.2}
    judged = {"perplexity": {"tokens": 4096, "sequence_length": 32}}
    one = drawn(ask(calibration={"source": rows}, validate=judged))
    more = {"source": rows, "seed": 9, "tokens": 4096, "sequence_length": 64}
    other = drawn(ask(calibration=more, search=None, validate=judged))
    assert torch.equal(one["evaluation-tokens"], other["evaluation-tokens"])
    fitted = _read(other["calibration-tokens"], begins)
    assert len(fitted) > 40 and not fitted & _read(one["evaluation-tokens"], begins)


@pytest.mark.parametrize(
    ("fitted", "judged"),
    [({"holdout": 0.2}, {}), ({}, {"holdout": 0.2}), ({"holdout": 0.2}, {"holdout": 0.1})],
)
def test_one_text_fits_and_judges_only_where_both_hold_out_the_same(
    fitted: dict[str, Any], judged: dict[str, Any], ask: Callable[..., Path], tmp_path: Path
) -> None:
    rows = _rows(tmp_path, 9)
    validate = {"perplexity": {"source": rows | judged}}
    with pytest.raises(UserError) as refused:
        load_recipe(ask(calibration={"source": rows | fitted}, validate=validate))
    (found,) = refused.value.diagnostics
    assert "rows.jsonl, as calibration does; they must be disjoint" in found.message
    assert found.hint and "both the same holdout" in found.hint


def test_a_judging_text_without_a_source_needs_one_that_is_held_out(
    ask: Callable[..., Path],
) -> None:
    with pytest.raises(UserError) as refused:
        load_recipe(ask(validate={"perplexity": {}}))
    (found,) = refused.value.diagnostics
    assert found.message.startswith("validate.perplexity has no source, and calibration.source")


def test_too_few_documents_for_all_who_read_them_are_told_with_the_numbers(
    ask: Callable[..., Path], tmp_path: Path
) -> None:
    rows = _rows(tmp_path, 2)
    with pytest.raises(SourceError) as caught:
        drawn(ask(calibration={"source": rows, "tokens": 64}, recover=RECOVER))
    assert caught.value.message == (
        "the source holds 97 tokens for this text, in 1 of its 2 documents or parts of them; "
        "512 are asked for"
    )


@pytest.mark.parametrize("join", [None, "\n\n", ""])
def test_a_whole_text_is_read_window_after_window(
    join: str | None, ask: Callable[..., Path], begins: Path, tmp_path: Path
) -> None:
    texts = [" ".join(random.Random(number).choices(WORDS, k=50)) for number in range(8)]
    lines = [json.dumps({"text": text}) for text in texts]
    (tmp_path / "test.jsonl").write_text("\n".join(lines), encoding="utf-8")
    source = {"kind": "jsonl", "files": ["test.jsonl"]} | ({} if join is None else {"join": join})
    check = {"source": source, "tokens": "all", "sequence_length": 24}
    ids = drawn(ask(validate={"perplexity": check}))["evaluation-tokens"]

    tokenizer = Tokenizer.from_file(str(begins / "tokenizer.json"))
    if join is None:
        whole = [
            i for t in texts for i in [*tokenizer.encode(t, add_special_tokens=False).ids, END]
        ]
    else:
        whole = tokenizer.encode(join.join(texts), add_special_tokens=False).ids
    expected = [[BOS, *whole[at : at + 23]] for at in range(0, len(whole) - 22, 23)]
    assert ids.tolist() == expected


def test_a_report_says_how_a_text_was_read(
    ask: Callable[..., Path], tmp_path: Path, prunec: Callable[..., Any]
) -> None:
    rows = _rows(tmp_path, 40) | {"join": " ", "holdout": 0.5}
    path = ask(
        method={"kind": "magnitude"},
        calibration=None,
        validate={"perplexity": {"source": rows, "tokens": "all", "sequence_length": 64}},
    )
    done = prunec("build", path, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out" / "report" / "report.md").read_text(encoding="utf-8")
    assert re.search(
        r"tokens of jsonl \(.*0\.5 held out, joined by .*\), in \d+ windows of 64 tokens from its "
        r"beginning on, each after .?<s",
        text,
    )


# --- conversations --------------------------------------------------------------------------------

CHAT = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}</s>"


def _chats(folder: Path) -> dict[str, Any]:
    rows = [
        {"messages": [{"role": role, "content": f"{role} {n}"} for role in ("user", "assistant")]}
        for n in range(400)
    ]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return {"source": {"kind": "chat", "files": ["chats.jsonl"]}}


def test_conversations_are_read_as_the_chat_template_writes_them(
    ask: Callable[..., Path], begins: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(begins, tmp_path / "model")
    (model / "chat_template.jinja").write_text(CHAT, "utf-8")
    ids = drawn(ask(model, calibration=_chats(tmp_path)))["calibration-tokens"]
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    # What windows begin with is not doubled, and nothing but the template ends a conversation.
    assert (ids[:, 0] == BOS).all() and not ((ids[:, :-1] == BOS) & (ids[:, 1:] == BOS)).any()
    assert not ((ids[:, :-1] == END) & (ids[:, 1:] == END)).any() and (ids == END).any()
    text = tokenizer.decode(ids[0, 1:].tolist())
    assert "assistant: " in text and "user" in text


def test_conversations_take_a_model_with_a_chat_template(
    ask: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(RecipeProblemError, match="has no chat template") as caught:
        planned(ask(calibration=_chats(tmp_path)))
    assert "chat_template.jinja" in (caught.value.hint or "")
