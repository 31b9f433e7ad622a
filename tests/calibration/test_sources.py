# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from prunec.compiler.calibration import sources
from prunec.compiler.calibration.sources import Document, SourceError, Tally, documents, identity


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
        assert found == [Document("one", "rows.jsonl@1"), Document("two", "rows.jsonl@25")]


def test_the_standard_library_is_a_source(tmp_path: Path) -> None:
    source = {"kind": "python_stdlib", "split": "evaluation"}
    first = next(documents(source, 0, tmp_path))
    assert first.text and (first.of or first.name).endswith(".py")
    assert identity(source, tmp_path) != identity(source | {"split": "search"}, tmp_path)


# --- what holds no text ---------------------------------------------------------------------------


def test_empty_documents_are_skipped_and_counted(tmp_path: Path) -> None:
    rows = [_row("a"), _row(""), _row(" \n\t"), b'{"text": null}\n', _row("b")]
    _jsonl(tmp_path / "rows.jsonl", rows)
    source = {"kind": "jsonl", "files": ["rows.jsonl"], "field": "text"}
    tally = Tally()
    assert {d.text for d in documents(source, 0, tmp_path, tally=tally)} == {"a", "b"}
    assert tally == Tally(read=2, empty=2, missing=1) and tally.skipped == 3
    kept = documents(source, None, tmp_path, keep_empty=True)
    assert [document.text for document in kept] == ["a", "", " \n\t", "b"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no documents"),
        ([b"\n \n"], "no documents"),
        ([_row("")] * 3, "of 3 documents 3 are empty"),
        ([_row(" "), b'{"text": null}\n'], "of 2 documents 1 are empty and 1 hold null"),
    ],
)
def test_a_source_with_nothing_in_it_is_refused_with_the_numbers(
    tmp_path: Path, rows: list[bytes], said: str
) -> None:
    for name in "abcde":
        _jsonl(tmp_path / name, [])
    _jsonl(tmp_path / "a", rows)
    source = {"kind": "jsonl", "files": list("abcde"), "field": "text"}
    with pytest.raises(SourceError) as caught:
        _read(source, tmp_path)
    assert caught.value.message == f"no text in a, b, c and 2 more files: {said}"


def test_halves_of_surrogate_pairs_are_replaced(tmp_path: Path) -> None:
    _jsonl(tmp_path / "rows.jsonl", [b'{"text": "a \\ud83d b \\ud83d\\ude00"}\n'])
    source = {"kind": "jsonl", "files": ["rows.jsonl"], "field": "text"}
    assert _read(source, tmp_path) == ["a \N{REPLACEMENT CHARACTER} b \N{GRINNING FACE}"]


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


# --- the hub: the library's own streams, since the hub itself takes a network ---------------------

HUB = {
    "kind": "hub",
    "dataset": "some/corpus",
    "config": "small",
    "split": "train",
    "field": "text",
    "revision": "abc",
}


def _stream(shards: list[list[dict[str, object]]]) -> Any:
    def rows(shards: list[list[dict[str, object]]]) -> Iterator[dict[str, object]]:
        for shard in shards:
            yield from shard

    return datasets.IterableDataset.from_generator(rows, gen_kwargs={"shards": shards})


def test_a_hub_source_asks_for_what_the_recipe_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[object] = []

    def load(*args: object, **options: object) -> Any:
        asked.append((args, options))
        return _stream([[{"text": f"{shard}-{row}"} for row in range(20)] for shard in range(3)])

    monkeypatch.setattr(datasets, "load_dataset", load)
    first = list(documents(HUB, 1, tmp_path))
    expected = {"split": "train", "revision": "abc", "streaming": True}
    assert asked == [(("some/corpus", "small"), expected)]
    names = {document.name: document.text for document in first}
    assert len(first) == len(names) == 60 and names["2@7"] == "2-7"
    second = list(documents(HUB, 2, tmp_path))
    assert {document.name: document.text for document in second} == names
    assert first != second and first == list(documents(HUB, 1, tmp_path))
    in_order = list(documents(HUB, None, tmp_path))
    assert [document.text for document in in_order[:21]] == [*(f"0-{n}" for n in range(20)), "1-0"]


def test_what_the_hub_refuses_is_a_source_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: _stream([[{"body": "a", "id": 1}]])
    )
    with pytest.raises(
        SourceError, match="row 0: no JSON object with a text field 'text'"
    ) as caught:
        _read(HUB, tmp_path)
    assert caught.value.hint == "its fields: body, id"

    def absent(*_: object, **__: object) -> object:
        raise FileNotFoundError("no such data set")

    monkeypatch.setattr(datasets, "load_dataset", absent)
    with pytest.raises(SourceError, match="some/corpus cannot be read: no such data set"):
        _read(HUB, tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SourceError, match="datasets library"):
        _read(HUB, tmp_path)
