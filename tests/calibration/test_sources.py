# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from prunec.compiler.calibration import sources
from prunec.compiler.calibration.sources import Document, SourceError, documents, identity


def _jsonl(path: Path, lines: list[bytes]) -> Path:
    path.write_bytes(b"".join(lines))
    return path


def _row(text: str) -> bytes:
    return json.dumps({"text": text, "n": 1}).encode() + b"\n"


def _read(source: dict[str, Any], base: Path, seed: int | None = 0) -> list[str]:
    return [document.text for document in documents(source, seed, base)]


# --- order ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_a_seed_decides_the_order_and_loses_nothing(tmp_path: Path, kind: str) -> None:
    texts = [f"document {i} – ünïcode\nand a second line" for i in range(40)]
    if kind == "text":
        for i, text in enumerate(texts):
            (tmp_path / f"{i}.txt").write_text(text, encoding="utf-8")
        source: dict[str, Any] = {"kind": "text", "files": [f"{i}.txt" for i in range(40)]}
    else:
        _jsonl(tmp_path / "a.jsonl", [_row(text) for text in texts[:15]])
        _jsonl(tmp_path / "b.jsonl", [_row(text) for text in texts[15:]])
        source = {"kind": "jsonl", "files": ["a.jsonl", "b.jsonl"], "field": "text"}
    first = _read(source, tmp_path, seed=1)
    assert sorted(first) == sorted(texts)
    assert first == _read(source, tmp_path, seed=1)
    assert first != texts and first != _read(source, tmp_path, seed=2)
    assert _read(source, tmp_path, seed=None) == texts


def test_a_document_has_one_name_whatever_the_seed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.txt", "in/a.txt"):
        (tmp_path / name).write_text(name)
    _jsonl(tmp_path / "rows.jsonl", [b"\n", _row("one"), _row("two")])
    for seed in range(3):
        source: dict[str, Any] = {"kind": "text", "files": ["a.txt", "in/a.txt"]}
        found = list(documents(source, seed, tmp_path))
        assert {document.name: document.text for document in found} == {
            "a.txt": "a.txt",
            "in/a.txt": "in/a.txt",
        }
        source = {"kind": "jsonl", "files": ["rows.jsonl"], "field": "text"}
        found = sorted(documents(source, seed, tmp_path), key=lambda document: document.name)
        assert found == [Document("one", "rows.jsonl:2"), Document("two", "rows.jsonl:3")]


def test_the_standard_library_is_a_source(tmp_path: Path) -> None:
    source = {"kind": "python_stdlib", "split": "evaluation"}
    first = next(documents(source, 0, tmp_path))
    assert first.text and first.name.endswith(".py") and first.whole
    assert identity(source, tmp_path) != identity(source | {"split": "search"}, tmp_path)


def test_bytes_that_are_no_utf8_do_not_stop_a_text_source(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good \xff bad")
    assert _read({"kind": "text", "files": ["a.txt"]}, tmp_path) == ["good � bad"]


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b"{not json\n",
        b"[1, 2]\n",
        b'"text"\n',
        b"7\n",
        b'{"txt": "x"}\n',
        b'{"text": 3}\n',
        b'{"text": null}\n',
        b'{"text": "\xff"}\n',
        b"[" * 100_000 + b"\n",
        b'{"text": "cut',
    ],
)
def test_a_bad_line_is_named_by_file_and_line(tmp_path: Path, line: bytes) -> None:
    good = [_row("a"), b"\n", b"   \n", _row("b")]
    path = _jsonl(tmp_path / "rows.jsonl", [*good, line])
    source = {"kind": "jsonl", "files": ["rows.jsonl"], "field": "text"}
    with pytest.raises(SourceError) as caught:
        _read(source, tmp_path)
    assert caught.value.message.startswith(f"{path}:5: ")
    assert "'text'" in caught.value.message and "\n" not in caught.value.message


def test_blank_lines_and_a_last_line_without_an_end_are_no_mistake(tmp_path: Path) -> None:
    _jsonl(tmp_path / "rows.jsonl", [b"\n", _row("a"), b"  \r\n", _row("b")[:-1]])
    source = {"kind": "jsonl", "files": ["rows.jsonl"], "field": "text"}
    assert sorted(_read(source, tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("kind", ["text", "jsonl"])
@pytest.mark.parametrize("missing", ["gone", "folder"])
def test_a_file_that_cannot_be_read_is_a_source_error(
    tmp_path: Path, kind: str, missing: str
) -> None:
    (tmp_path / "folder").mkdir()
    source: dict[str, Any] = {"kind": kind, "files": [missing]}
    if kind == "jsonl":
        source["field"] = "text"
    for read in (lambda: identity(source, tmp_path), lambda: _read(source, tmp_path)):
        with pytest.raises(SourceError, match=f"{missing} cannot be read: "):
            read()


# --- identity -------------------------------------------------------------------------------------


def test_an_identity_changes_with_the_text_and_not_with_the_time(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    source = {"kind": "text", "files": ["a.txt"]}
    before = identity(source, tmp_path)
    os.utime(path, (1, 1))
    assert identity(source, tmp_path) == before
    path.write_text("two")
    assert identity(source, tmp_path) != before


def test_a_large_file_is_known_by_size_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_HASHED_BYTES", 2)
    path = tmp_path / "a.txt"
    path.write_text("one")
    source = {"kind": "text", "files": ["a.txt"]}
    before = identity(source, tmp_path)
    assert identity(source, tmp_path) == before
    os.utime(path, ns=(1, 1))
    assert identity(source, tmp_path) != before


# --- the hub, by a stand-in for its library: a stream cannot be had without a network -------------


class _Rows(list[dict[str, object]]):
    def map(self, change: Any, with_indices: bool) -> _Rows:
        assert with_indices
        return _Rows(change(row, number) for number, row in enumerate(self))

    def shuffle(self, seed: int, buffer_size: int) -> _Rows:
        return _Rows(self[seed:] + self[:seed])


def _library(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    module = ModuleType("datasets")
    module.load_dataset = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)


HUB = {
    "kind": "hub",
    "dataset": "some/corpus",
    "config": "small",
    "split": "train",
    "field": "text",
    "revision": "abc",
}


def test_a_hub_source_asks_for_what_the_recipe_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[object] = []

    def load(*args: object, **options: object) -> _Rows:
        asked.append((args, options))
        return _Rows([{"text": "a"}, {"text": "b"}, {"text": "c"}])

    _library(monkeypatch, load)
    assert _read(HUB, tmp_path, seed=1) == ["b", "c", "a"]
    expected = {"split": "train", "revision": "abc", "streaming": True}
    assert asked == [(("some/corpus", "small"), expected)]


def test_what_the_hub_refuses_is_a_source_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _library(monkeypatch, lambda *_, **__: _Rows([{"body": "a", "id": 1}]))
    with pytest.raises(SourceError, match="no text field 'text'") as caught:
        _read(HUB, tmp_path)
    assert caught.value.hint == "its fields: body, id"

    def absent(*_: object, **__: object) -> _Rows:
        raise FileNotFoundError("no such data set")

    _library(monkeypatch, absent)
    with pytest.raises(SourceError, match="some/corpus cannot be read: no such data set"):
        _read(HUB, tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SourceError, match="datasets library"):
        _read(HUB, tmp_path)
