# SPDX-License-Identifier: Apache-2.0
"""Which documents of a source are whose."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunec.compiler.calibration.readers import OwnDocuments, is_held_out, joined
from prunec.compiler.calibration.sources import Document


def _documents(count: int = 60, size: int = 200) -> list[Document]:
    return [Document(f"{number:04d} " * (size // 5), f"{number}.txt") for number in range(count)]


def _read(documents: list[Document], source_bytes: int = 0, **options: Any) -> list[Document]:
    return list(OwnDocuments(documents, source_bytes, **options))


def _size(documents: list[Document]) -> int:
    return sum(len(document.text) for document in documents)


@given(
    st.lists(st.integers(1, 400), min_size=3, max_size=80),
    st.lists(st.integers(1, 10**6), min_size=1, max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_every_document_has_one_reader(sizes: list[int], shares: list[int]) -> None:
    documents = [Document("x" * size, str(number)) for number, size in enumerate(sizes)]
    found = [_read(documents, shares=shares, own=own) for own in range(len(shares))]
    assert sorted(d.name for own in found for d in own) == sorted(d.name for d in documents)
    assert all(found)  # three documents are enough for three readers


def test_readers_get_documents_by_what_they_ask_for() -> None:
    documents, shares = _documents(440), [131_072, 16_384, 65_536]
    found = [_size(_read(documents, shares=shares, own=own)) for own in range(3)]
    for got, share in zip(found, shares, strict=True):
        assert got / sum(found) == pytest.approx(share / sum(shares), abs=0.005)


def test_one_file_serves_several_readers_in_parts_cut_between_words() -> None:
    words = random.Random(0).choices(["stone", "cloud", "\n\nriver", "glass"], k=20_000)
    file = Document(" ".join(words), "all.txt")
    size = len(file.text)
    found = [_read([file], size, shares=[8, 1, 1], own=own) for own in range(3)]
    assert _size(found[0] + found[1] + found[2]) == size
    assert [_size(own) / size for own in found] == pytest.approx([0.8, 0.1, 0.1], abs=0.04)
    parts = [part.text for own in found for part in own]
    assert max(map(len, parts)) <= size / 64 * 1.5 and all(part.strip() for part in parts)
    assert all(part.split()[0] in ("stone", "cloud", "river", "glass") for part in parts)
    assert sum(part.whole for own in found for part in own) == 1


def test_a_single_reader_gets_documents_as_they_are() -> None:
    file = Document("word " * 50_000, "all.txt")
    assert _read([file], len(file.text)) == [file]


def test_what_is_held_out_does_not_depend_on_order_seeds_or_folders() -> None:
    documents = _documents(1000)
    held = _read(documents, holdout=0.2, judges=True)
    rest = _read(documents, holdout=0.2)
    assert {d.name for d in held} | {d.name for d in rest} == {d.name for d in documents}
    assert len(held) + len(rest) == 1000 and 160 < len(held) < 240
    shuffled = random.Random(1).sample(documents, 1000)
    assert {d.name for d in _read(shuffled, holdout=0.2, judges=True)} == {d.name for d in held}
    for document in documents[:50]:
        elsewhere = f"../some/where/{document.name}"
        assert is_held_out(elsewhere, 0, 0.2) == is_held_out(document.name, 0, 0.2)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5, 0.9])
def test_of_one_file_that_share_is_held_out(share: float) -> None:
    file = Document("word " * 50_000, "all.txt")
    size = len(file.text)
    held = _size(_read([file], size, holdout=share, judges=True))
    assert held / size == pytest.approx(share, abs=0.032)
    assert held + _size(_read([file], size, holdout=share)) == size


def test_what_is_held_out_is_dealt_to_nobody() -> None:
    documents = _documents(400)
    fitted = [_read(documents, holdout=0.1, shares=[3, 1], own=own) for own in (0, 1)]
    held = _read(documents, holdout=0.1, judges=True)
    names = [document.name for each in (*fitted, held) for document in each]
    assert sorted(names) == sorted(document.name for document in documents)


def test_conversations_are_never_cut() -> None:
    talk = Document("<|user|> hello " * 5_000, "rows.jsonl:1", templated=True)
    assert _read([talk], len(talk.text), holdout=0.5, judges=is_held_out(talk.name, 0, 0.5)) == [
        talk
    ]


def test_parts_that_follow_each_other_become_a_document_again() -> None:
    file, other = Document("word " * 9_000, "all.txt"), Document("short", "b.txt")
    parts = [Document(file.text[:70], "all.txt", False), Document(file.text[70:], "all.txt")]
    assert list(joined([*parts, other])) == [file, other]
    cut_off = list(joined([parts[0], other]))
    assert [document.whole for document in cut_off] == [False, True]
