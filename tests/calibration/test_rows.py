# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import codecs
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunec.compiler.calibration import json_lines
from prunec.compiler.calibration.json_array import JsonArray
from prunec.compiler.calibration.rows import TextField
from prunec.compiler.calibration.sources import SourceError, check, documents, identity

TEXTS = [f"row {i} – ünïcode \N{GRINNING FACE}\n" + "x" * (i % 7) for i in range(200)]
ROWS = [{"text": text, "id": i} for i, text in enumerate(TEXTS)]


def _source(name: str, field: str = "text") -> dict[str, Any]:
    return {"kind": "jsonl", "files": [name], "field": field}


def _lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _saved(path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(path))


def _parquet(path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=70)


WRITTEN = {
    "lines": lambda path: path.write_bytes(_lines(ROWS)),
    "lines with a byte order mark and \\r\\n": lambda path: path.write_bytes(
        codecs.BOM_UTF8 + _lines(ROWS).replace(b"\n", b"\r\n")
    ),
    "compressed lines": lambda path: path.write_bytes(gzip.compress(_lines(ROWS))),
    "array": lambda path: path.write_text(json.dumps(ROWS, indent=1), "utf-8"),
    "array in one line": lambda path: path.write_bytes(
        codecs.BOM_UTF8 + json.dumps(ROWS, ensure_ascii=False).encode()
    ),
    "compressed array": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "parquet": _parquet,
    "saved data set": _saved,
}


@pytest.mark.parametrize("form", WRITTEN)
def test_rows_are_read_by_what_a_file_holds(tmp_path: Path, form: str) -> None:
    WRITTEN[form](tmp_path / "rows")
    source = _source("rows")
    check(source, tmp_path)
    in_order = list(documents(source, None, tmp_path))
    assert [document.text for document in in_order] == TEXTS
    assert len({document.name for document in in_order}) == len(TEXTS)
    for seed in (1, 2):
        shuffled = list(documents(source, seed, tmp_path))
        assert shuffled != in_order and sorted(shuffled, key=str) == sorted(in_order, key=str)
    assert identity(source, tmp_path) == identity(source, tmp_path)


@pytest.mark.parametrize("form", WRITTEN)
def test_a_field_that_is_not_there_is_refused_at_planning_with_those_that_are(
    tmp_path: Path, form: str
) -> None:
    WRITTEN[form](tmp_path / "rows")
    with pytest.raises(SourceError, match=r"no .*text field 'body'") as caught:
        check(_source("rows", "body"), tmp_path)
    assert str(tmp_path / "rows") in caught.value.message
    assert caught.value.hint == "its fields: text, id"


@pytest.mark.parametrize("rows", [{"messages": []}, {"prompt": "a", "completion": "b"}])
def test_conversations_say_which_kind_reads_them(tmp_path: Path, rows: dict[str, Any]) -> None:
    (tmp_path / "rows").write_bytes(_lines([rows]))
    with pytest.raises(SourceError) as caught:
        check(_source("rows"), tmp_path)
    assert "kind: chat" in (caught.value.hint or "")


def test_a_library_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _parquet(tmp_path / "pyarrow")
    _saved(tmp_path / "datasets")
    for library in ("pyarrow", "datasets"):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(SourceError, match=f"takes the {library} library") as caught:
            list(documents(_source(library), 0, tmp_path))
        assert "prunec[hub]" in (caught.value.hint or "")


def test_a_folder_of_several_splits_names_them(tmp_path: Path) -> None:
    split = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(str(tmp_path / "rows"))
    with pytest.raises(SourceError, match="2 splits") as caught:
        check(_source("rows"), tmp_path)
    assert f"{tmp_path}/rows/train" in (caught.value.hint or "")
    assert len(list(documents(_source("rows/test"), 0, tmp_path))) == len(ROWS)


@given(
    st.sampled_from(
        [b"", b"[", b'{"text": ', b"PAR1", b"\x1f\x8b", b"BZh9", b"\xfd7zXZ\0", b"\xff\xfe"]
    ),
    st.one_of(st.binary(max_size=60), st.text(max_size=40).map(str.encode)),
    st.sampled_from([b"", b"}", b"]", b"\n", b"PAR1"]),
)
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused_in_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, start: bytes, rest: bytes, end: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any-bytes"
    path.write_bytes(start + rest + end)
    chat = {"files": [path.name], "field": None, "kind": "chat"}
    chat |= dict.fromkeys(("dataset", "config", "split", "revision"))
    for source in (_source(path.name), _source(path.name) | {"kind": "text"}, chat):
        for seed in (None, 0):
            try:
                check(source, path.parent)
                found = documents(source, seed, path.parent, template=str)
                assert all(document.text.encode() for document in found)
            except SourceError as refusal:
                assert refusal.message and "\n" not in refusal.message


def test_a_saved_data_set_that_is_damaged_is_refused(tmp_path: Path) -> None:
    for name in ("state.json", "dataset_info.json", "data-00000-of-00001.arrow"):
        _saved(tmp_path / name)
        (tmp_path / name / name).write_bytes(b"[7")
        with pytest.raises(SourceError, match=r"cannot be read|holds no JSON"):
            check(_source(name), tmp_path)
            list(documents(_source(name), 0, tmp_path))


# --- lines ----------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 90), min_size=1, max_size=30), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_every_line_is_in_one_block_whatever_their_lengths(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], seed: int
) -> None:
    path = tmp_path_factory.mktemp("lines") / "rows"
    texts = [f"{number}" + "x" * length for number, length in enumerate(lengths)]
    path.write_bytes(_lines([{"text": text} for text in texts])[: -1 if seed % 2 else None])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lines, "BLOCK", 40)
        found = [document.text for document in documents(_source(path.name), seed, path.parent)]
    assert sorted(found) == sorted(texts)


def test_a_line_is_refused_by_its_number_wherever_it_is_read(tmp_path: Path) -> None:
    content = _lines(ROWS * 40) + b'{"text": 7}\n' + _lines(ROWS)
    for path, data in ((tmp_path / "a", content), (tmp_path / "b", gzip.compress(content))):
        path.write_bytes(data)
        with pytest.raises(SourceError) as caught:
            list(documents(_source(path.name), 3, tmp_path))
        assert caught.value.message.startswith(f"{path}:8001: ")


def test_a_line_without_an_end_is_not_read_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "LONGEST_ROW", 2**20)
    for path, data in (
        (tmp_path / "a", b"x" * 2**22),
        (tmp_path / "b", gzip.compress(b"x" * 2**22)),
    ):
        path.write_bytes(data)
        with pytest.raises(SourceError, match="a line of more than 1 MiB"):
            list(documents(_source(path.name), 3, tmp_path))


def test_a_large_file_of_lines_costs_a_pool(tmp_path: Path) -> None:
    counters = Path("/proc/self/io")
    if not counters.exists():
        pytest.skip("only Linux counts")
    (tmp_path / "rows").write_bytes(_lines([{"text": "some words " * 30}]) * 120_000)
    before = int(counters.read_text().split()[1])
    found = documents(_source("rows"), 0, tmp_path)
    places = [int(next(found).name.partition("@")[2]) for _ in range(50)]
    assert int(counters.read_text().split()[1]) - before < 8 * 2**20
    assert min(places) < 10_000_000 and max(places) > 30_000_000


# --- arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"[", b'[{"text": "a"}', b'[{"text": "a"},]', b'[{"text": "a"} {"text": "b"}]',
     b'[{"text": "a"}] {"text": "b"}', b'[{"text": "a', b'[{"text": "a"}, \xff]', b"[" * 100_000],
)  # fmt: skip
def test_a_broken_array_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=f"{path}, row . *"):
        list(JsonArray(path, "rows", TextField("text")).records(None))


def test_rows_longer_than_what_is_read_at_once_are_whole(tmp_path: Path) -> None:
    rows = [{"text": sign * 300_000, "nested": [{"n": 1.5e3}]} for sign in "aé"]
    (tmp_path / "rows").write_text(json.dumps(rows), "utf-8")
    found = list(documents(_source("rows"), None, tmp_path))
    assert "".join(piece.text for piece in found) == "a" * 300_000 + "é" * 300_000
    assert [piece.of for piece in found if piece.whole] == ["rows@1", "rows@2"]


# --- order ----------------------------------------------------------------------------------------


def test_files_take_turns_by_their_size(tmp_path: Path) -> None:
    """A long stream that can only be read from its beginning keeps no other file waiting."""
    (tmp_path / "long").write_bytes(gzip.compress(_lines([{"text": "long " * 4000}] * 1000), 0))
    for number in range(90):
        (tmp_path / f"{number}").write_bytes(_lines([{"text": f"short {number}"}]))
    source = _source("long") | {"files": ["long", *map(str, range(90))]}
    found = documents(source, 0, tmp_path)
    first = [next(found).name.partition("@")[0] for _ in range(700)]
    assert 10 < len({*first}) < 80 and first.count("long") > 600
    rest = [document.name for document in found]
    assert len(rest) + len(first) == 1090
