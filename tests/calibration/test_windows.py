# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunec.compiler.calibration.sources import Document, SourceError
from prunec.compiler.calibration.windows import all_windows, document_ids, draw_windows

END = 9_999_999


def _documents(count: int = 400, size: int = 30) -> list[str]:
    """Every token of every document is a number of its own."""
    return [" ".join(str(d * size + i) for i in range(size)) for d in range(count)]


def _encode(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def _ended(document: Document) -> list[int]:
    return document_ids(document, _encode, END)


def _draw(documents: list[str] | Iterator[str] | None = None, **options: Any) -> torch.Tensor:
    given_ = {"windows": 6, "length": 16, "seed": 0} | options
    texts = _documents() if documents is None else documents
    read = (Document(text, str(number)) for number, text in enumerate(texts))
    return draw_windows(read, _ended, **({"total": given_["windows"]} | given_))


def _tokens(windows: torch.Tensor) -> set[int]:
    return set(windows.flatten().tolist()) - {END}


@given(st.integers(1, 9), st.integers(0, 9), st.integers(2, 33), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_a_draw_begins_as_a_smaller_one_of_it_and_repeats_nothing(
    first: int, second: int, length: int, seed: int
) -> None:
    whole: dict[str, Any] = {"length": length, "seed": seed, "total": first + second}
    together = _draw(windows=first + second, **whole)
    assert together.shape == (first + second, length)
    assert torch.equal(_draw(windows=first, **whole), together[:first])
    places = together.flatten().tolist()  # as many tokens as places
    assert len(_tokens(together)) == len(places) - places.count(END)


def test_the_whole_text_is_cut_from_its_beginning() -> None:
    texts = [Document(text, str(number)) for number, text in enumerate(_documents(5, 9))]
    stream = [token for text in texts for token in _ended(text)]
    assert all_windows(texts, _ended, 16).tolist() == [stream[:16], stream[16:32], stream[32:48]]
    with pytest.raises(SourceError, match="holds 50 tokens; 64 are asked for"):
        all_windows(texts, _ended, 64)


def test_a_window_is_a_run_of_the_documents_joined_by_the_end_token() -> None:
    stream = [i for text in _documents() for i in [*_encode(text), END]]
    for window in _draw().tolist():
        at = stream.index(window[0] if window[0] != END else window[1]) - (window[0] == END)
        assert stream[at : at + 16] == window
        assert at % 16 == 0


def test_pieces_of_a_document_are_joined_by_nothing() -> None:
    pieces = [Document("1 2", "a@0", whole=False), Document("3", "a@1"), Document("4", "b")]
    assert all_windows(pieces, _ended, 6).tolist() == [[1, 2, 3, END, 4, END]]


@pytest.mark.parametrize(
    ("document", "options", "ids"),
    [
        (Document("1 2", "a"), {}, [1, 2, END]),
        (Document("1 2", "a"), {"join": " 8 "}, [1, 2, 8]),
        (Document("1 2", "a", whole=False), {"join": " 8 "}, [1, 2]),
        (Document("1 2", "a"), {"prefix": [1]}, [1, 2, END]),
        (Document("1 2", "a", templated=True), {}, [1, 2]),
        (Document("1 2", "a", templated=True), {"prefix": [1]}, [2]),  # the window begins with it
        (Document("1 2", "a", templated=True), {"prefix": [2]}, [1, 2]),
    ],
)
def test_what_stands_behind_a_document_is_what_joins_it_to_the_next(
    document: Document, options: dict[str, Any], ids: list[int]
) -> None:
    assert document_ids(document, _encode, END, **options) == ids


def test_a_seed_decides_the_windows() -> None:
    first = _draw(seed=1)
    assert torch.equal(first, _draw(seed=1))
    assert not torch.equal(first, _draw(seed=2))
    assert first.dtype == torch.int64


def test_no_more_text_is_read_than_a_few_times_what_is_asked_for() -> None:
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        for text in _documents(10_000):
            read += 1
            yield text

    _draw(texts(), windows=6, length=16)
    assert 6 * 16 <= read * 31 <= 5 * 6 * 16 + 31


def test_a_sample_spreads_over_more_documents_than_it_fills() -> None:
    drawn = _draw(windows=20, length=31, total=20)
    documents = {min(set(window) - {END}) // 30 for window in drawn.tolist()}
    assert max(documents) > 40


@pytest.mark.parametrize("texts", [[], [""], ["1 2 3"], ["1 2 3"] * 4])
def test_too_little_text_is_refused_with_the_numbers(texts: list[str]) -> None:
    have = sum(len(_encode(text)) + 1 for text in texts)
    with pytest.raises(SourceError) as caught:
        _draw(texts, windows=2, length=16)
    assert caught.value.message == f"the source holds {have} tokens; 32 are asked for"
    assert caught.value.hint


def test_just_enough_text_is_enough() -> None:
    # Fifteen tokens and an end, twice: two windows, in some order, and not one more.
    texts = _documents(2, 15)
    assert _tokens(_draw(texts, windows=2)) == set(range(30))
    with pytest.raises(SourceError, match="holds 32 tokens; 48 are asked for"):
        _draw(texts, windows=2, total=3)


def test_more_windows_than_the_draw_holds_are_never_silently_fewer() -> None:
    with pytest.raises(ValueError, match="more than the draw's 6"):
        _draw(windows=7, total=6)
