# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from prunec.compiler.calibration.chats import Message
from prunec.compiler.calibration.sources import SourceError, Tally, check, documents

_JINJA = ImmutableSandboxedEnvironment().from_string(
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<end>"
)
USER, ANSWER = {"role": "user", "content": "a?"}, {"role": "assistant", "content": "b."}


def _template(messages: list[Message]) -> str:
    return _JINJA.render(messages=messages)


def _source(path: Path, rows: list[Any], field: str | None = None) -> dict[str, Any]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return {
        "kind": "chat",
        "files": [path.name],
        "field": field,
        "dataset": None,
        "config": None,
        "split": None,
        "revision": None,
    }


def _texts(path: Path, row: Any, field: str | None = None, template: Any = _template) -> list[str]:
    source = _source(path, [row], field)
    found = list(documents(source, 0, path.parent, template=template))
    assert all(document.templated and document.whole for document in found)
    return [document.text for document in found]


@pytest.mark.parametrize(
    ("row", "field", "text"),
    [
        ({"messages": [USER, ANSWER]}, None, "<user>a?<assistant>b.<end>"),
        ({"talk": [USER], "messages": [ANSWER]}, "talk", "<user>a?<end>"),
        (
            {"conversations": [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b."}]},
            None,
            "<user>a?<assistant>b.<end>",
        ),
        ({"prompt": "a?", "completion": "b."}, None, "<user>a?<assistant>b.<end>"),
        ({"prompt": [USER], "completion": [ANSWER]}, None, "<user>a?<assistant>b.<end>"),
        ({"instruction": "a?", "input": "", "output": "b."}, None, "<user>a?<assistant>b.<end>"),
        (
            {"instruction": "a", "input": "x", "output": "b."},
            None,
            "<user>a\n\nx<assistant>b.<end>",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a?"}]}]},
            None,
            "<user>a?<end>",
        ),
    ],
)
def test_conversations_of_any_usual_form_go_through_the_template(
    tmp_path: Path, row: Any, field: str | None, text: str
) -> None:
    assert _texts(tmp_path / "rows", row, field) == [text]


def test_what_a_message_has_besides_reaches_the_template_and_nulls_do_not(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}], "name": None}
    text = _texts(tmp_path / "rows", {"messages": [USER, call]}, template=json.dumps)[0]
    assert json.loads(text)[1] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"name": "f"}],
    }


def test_conversations_without_words_are_skipped_and_counted(tmp_path: Path) -> None:
    rows = [
        {"messages": [USER]},
        {"messages": []},
        {"messages": None},
        {"messages": [{"role": "user", "content": " "}, {"role": "assistant", "content": ""}]},
    ]
    tally = Tally()
    source = _source(tmp_path / "rows", rows)
    found = list(documents(source, 0, tmp_path, template=_template, tally=tally))
    assert len(found) == 1 and tally == Tally(read=1, empty=2, missing=1)


@pytest.mark.parametrize(
    ("row", "field", "problem", "hint"),
    [
        ({"text": "x"}, None, "no messages in 'messages'", "its fields: text; read are messages"),
        ({"messages": [USER]}, "talk", "no messages in 'talk'", "its fields: messages"),
        ({"messages": "a?"}, None, "'messages' holds no list of messages", ""),
        ({"messages": ["a?"]}, None, "message 1 has no role with a text", '"role": "user"'),
        ({"messages": [USER, {"role": "user", "content": 7}]}, None, "message 2 has no role", ""),
        ({"prompt": "a", "completion": 3}, None, "'completion' holds no list of messages", ""),
        (7, None, "no JSON object with messages", ""),
    ],
)
def test_a_row_that_is_no_conversation_is_refused_at_planning(
    tmp_path: Path, row: Any, field: str | None, problem: str, hint: str
) -> None:
    source = _source(tmp_path / "rows", [row], field)
    with pytest.raises(SourceError) as caught:
        check(source, tmp_path)
    assert problem in caught.value.message and "rows" in caught.value.message
    assert hint in (caught.value.hint or "")


def test_a_template_that_refuses_a_conversation_is_heard(tmp_path: Path) -> None:
    def refuse(messages: list[Message]) -> str:
        raise jinja2.TemplateError("System role not supported")

    system = {"role": "system", "content": "Be brief."}
    with pytest.raises(SourceError, match=r"rows:1: .*refuses .*: System role not supp") as caught:
        _texts(tmp_path / "rows", {"messages": [system, USER]}, template=refuse)
    assert "system message" in (caught.value.hint or "")
    with pytest.raises(SourceError) as caught:
        _texts(tmp_path / "rows", {"messages": [USER]}, template=refuse)
    assert caught.value.hint is None


def test_conversations_of_the_hub_are_read_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def load(*args: object, **options: object) -> Any:
        asked.append((args, options["split"]))
        return datasets.Dataset.from_list([{"messages": [USER, ANSWER]}]).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = _source(tmp_path / "rows", []) | {"files": None, "dataset": "some/chats"}
    found = list(documents(source, 0, tmp_path, template=_template))
    assert [document.text for document in found] == ["<user>a?<assistant>b.<end>"]
    assert asked == [(("some/chats", None), "train")]
