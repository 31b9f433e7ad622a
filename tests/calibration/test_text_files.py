# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import random
import sys
from pathlib import Path

import pytest

from prunec.compiler.calibration.readers import joined
from prunec.compiler.calibration.sources import Document, SourceError, check, documents
from prunec.compiler.calibration.text_files import TextFile

TEXT = "Ein Satz über Füße – 漢字 \N{GRINNING FACE}.\n"


def _read(base: Path, name: str = "a.txt", seed: int | None = None) -> list[Document]:
    return list(documents({"kind": "text", "files": [name]}, seed, base))


def _refusal(base: Path, name: str = "a.txt") -> SourceError:
    """What planning says of the file, and reading it too."""
    with pytest.raises(SourceError) as planned:
        check({"kind": "text", "files": [name]}, base)
    assert planned.value.message.startswith(f"{base / name} ")
    return planned.value


# --- what is text ---------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_text_is_read_as_text(tmp_path: Path, compress: object) -> None:
    assert callable(compress)
    (tmp_path / "a.txt").write_bytes(compress(TEXT.encode()))
    check({"kind": "text", "files": ["a.txt"]}, tmp_path)
    assert _read(tmp_path) == [Document(TEXT, "a.txt")]


def test_zstd_is_read_where_its_library_is(tmp_path: Path) -> None:
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    compress = pytest.importorskip(name).compress
    (tmp_path / "a.txt").write_bytes(compress(TEXT.encode()))
    assert _read(tmp_path) == [Document(TEXT, "a.txt")]
    (tmp_path / "a.txt").write_bytes(compress(TEXT.encode() * 99)[:-9])
    with pytest.raises(SourceError, match=r"a\.txt cannot be decompressed"):
        _read(tmp_path)


def test_zstd_without_its_library_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "a.txt").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(20))
    refusal = _refusal(tmp_path)
    assert "compressed by zstd" in refusal.message and "pip install" in (refusal.hint or "")


def test_a_byte_order_mark_goes_and_lines_end_in_one_character(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(codecs.BOM_UTF8 + b"one\r\n\r\ntwo\rthree\n")
    assert _read(tmp_path)[0].text == "one\n\ntwo\nthree\n"


def test_a_character_that_the_end_of_a_file_cuts_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("ab漢".encode()[:-1])
    assert _read(tmp_path)[0].text == "ab"


# --- what is none ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (TEXT.encode("utf-16"), "UTF-16"),
        (TEXT.encode("utf-16-be") * 3, "UTF-16"),
        (b"a plain line\n".decode().encode("utf-16-le"), "UTF-16"),
        (TEXT.encode("utf-32"), "UTF-32"),
        ("é à ü ß ".encode("latin-1") * 9, "Latin-1 or another 8-bit encoding"),
        (random.Random(0).randbytes(4000), "binary data"),
        (b"good text, and then " + bytes(9), "binary data"),
        (b"PK\x03\x04" + bytes(60), "a zip archive"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"PAR1" + bytes(60), "a Parquet file"),
        (gzip.compress(random.Random(0).randbytes(4000)), "binary data"),
    ],
)
def test_what_is_no_utf8_text_is_refused_by_what_it_looks_like(
    tmp_path: Path, content: bytes, what: str
) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    assert what in _refusal(tmp_path).message
    if what in ("UTF-16", "UTF-32") or what.startswith("Latin"):
        assert "iconv -f" in (_refusal(tmp_path).hint or "")
    with pytest.raises(SourceError):
        _read(tmp_path)


def test_a_bad_byte_behind_the_first_block_is_refused_with_its_place(tmp_path: Path) -> None:
    content = TEXT.encode() * 9000
    for bad in (b"caf\xe9 ", b"\0"):
        place = 300_000
        (tmp_path / "a.txt").write_bytes(content[:place] + bad + content[place:])
        check({"kind": "text", "files": ["a.txt"]}, tmp_path)
        with pytest.raises(SourceError, match=r"a\.txt looks like"):
            _read(tmp_path)
    words = b"plain " * 50_000
    (tmp_path / "a.txt").write_bytes(words + b"caf\xe9 " + words)
    with pytest.raises(SourceError, match=r"looks like Latin-1 .*\(byte 300,003\)"):
        _read(tmp_path)


def test_a_broken_archive_is_refused(tmp_path: Path) -> None:
    content = gzip.compress(random.Random(0).randbytes(9000).hex().encode())
    for broken in (content[:-2000], content[:2000] + bytes(9) + content[2009:]):
        (tmp_path / "a.txt").write_bytes(broken)
        with pytest.raises(SourceError, match=r"a\.txt cannot be decompressed: "):
            _read(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.jsonl", b'{"text": "x"}\n', True),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n'), True),
        ("a.json", b'[\n {"text": "x"}]', True),
        ("package.json", b'{"name": "x"}', False),
        ("a.jsonl", b"in fact some prose", False),
        ("a.txt", b'{"text": "x"}\n', False),
    ],
)
def test_rows_are_not_taken_for_plain_text(
    tmp_path: Path, name: str, content: bytes, rows: bool
) -> None:
    (tmp_path / name).write_bytes(content)
    if rows:
        assert _refusal(tmp_path, name).hint == "kind: jsonl reads it"
    else:
        check({"kind": "text", "files": [name]}, tmp_path)


# --- pieces ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("between", ["\n\n", "\r\n", " ", ""])
@pytest.mark.parametrize("compressed", [False, True])
def test_pieces_joined_are_the_file(tmp_path: Path, between: str, compressed: bool) -> None:
    draw = random.Random(between)
    words = [
        "".join(draw.choices("aé漢\N{GRINNING FACE}", k=draw.randrange(1, 99))) for _ in range(9000)
    ]
    text = between.join(words)
    content = text.encode()
    (tmp_path / "a.txt").write_bytes(gzip.compress(content) if compressed else content)
    pieces = _read(tmp_path)
    assert "".join(piece.text for piece in pieces) == text.replace("\r\n", "\n")
    assert [piece.whole for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert len({piece.name for piece in pieces}) == len(pieces) > 3
    assert {piece.of for piece in pieces} == {"a.txt"}
    assert max(len(piece.text.encode()) for piece in pieces) <= 70_000
    if between:
        assert all(piece.text[-1].isspace() for piece in pieces[:-1])
    for seed in (1, 2):
        shuffled = _read(tmp_path, seed=seed)
        assert shuffled != pieces and sorted(shuffled, key=str) == sorted(pieces, key=str)


def test_pieces_in_order_are_joined_to_the_document_again(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT * 4000, "utf-8")
    (tmp_path / "b.txt").write_text(TEXT, "utf-8")
    found = documents({"kind": "text", "files": ["a.txt", "b.txt"]}, None, tmp_path)
    assert [document.text for document in joined(found)] == [TEXT * 4000, TEXT]


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 20, 21, 29, 30, 31])
def test_every_byte_is_in_one_piece_whatever_the_size(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.txt"
    path.write_text(("word " * 99)[:size])
    pieces = list(TextFile(path, "a", piece=10).records(None))
    assert "".join(piece.text or "" for piece in pieces) == path.read_text()
    assert [piece.whole for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def test_a_large_file_costs_what_is_taken_of_it(tmp_path: Path) -> None:
    line = b"some words of a long text that nobody reads as a whole\n"
    (tmp_path / "a.txt").write_bytes(line * (40_000_000 // len(line)))
    before = _bytes_read()
    found = documents({"kind": "text", "files": ["a.txt"]}, 0, tmp_path)
    places = [int(next(found).name.partition("@")[2]) for _ in range(20)]
    assert _bytes_read() - before < 8 * 2**20
    assert min(places) < 10_000_000 and max(places) > 30_000_000


def _bytes_read() -> int:
    """What this process has asked the system to read so far."""
    if not (counters := Path("/proc/self/io")).exists():
        pytest.skip("only Linux counts")
    return int(counters.read_text().split()[1])
