# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunec.compiler.calibration.sources import Document, SourceError
from prunec.compiler.calibration.windows import draw_windows

END = 9_999_999


def _documents(count: int = 400, size: int = 30) -> list[str]:
    """Every token of every document is a number of its own."""
    return [" ".join(str(d * size + i) for i in range(size)) for d in range(count)]


def _encode(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def _draw(documents: list[str] | Iterator[str] | None = None, **options: Any) -> torch.Tensor:
    given_ = {"windows": 6, "length": 16, "seed": 0, "skip": 0} | options
    texts = _documents() if documents is None else documents
    read = (Document(text, str(number)) for number, text in enumerate(texts))
    return draw_windows(read, _encode, END, **({"total": given_["windows"]} | given_))


def _tokens(windows: torch.Tensor) -> set[int]:
    return set(windows.flatten().tolist()) - {END}


@given(st.integers(1, 9), st.integers(0, 9), st.integers(2, 33), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_two_uses_of_one_draw_share_no_token(
    first: int, second: int, length: int, seed: int
) -> None:
    whole: dict[str, Any] = {"length": length, "seed": seed, "total": first + second}
    calibration = _draw(windows=first, skip=0, **whole)
    search = _draw(windows=second, skip=first, **whole)
    assert calibration.shape == (first, length) and search.shape == (second, length)
    assert not _tokens(calibration) & _tokens(search)
    together = _draw(windows=first + second, skip=0, **whole)
    assert torch.equal(torch.cat([calibration, search]), together)
    # Nor does one use repeat itself: there are as many tokens as places.
    places = together.flatten().tolist()
    assert len(_tokens(together)) == len(places) - places.count(END)


def test_a_window_is_a_run_of_the_documents_joined_by_the_end_token() -> None:
    stream = [i for text in _documents() for i in [*_encode(text), END]]
    for window in _draw().tolist():
        at = stream.index(window[0] if window[0] != END else window[1]) - (window[0] == END)
        assert stream[at : at + 16] == window
        assert at % 16 == 0


def test_pieces_of_a_document_are_joined_by_nothing() -> None:
    pieces = [Document("1 2", "a@0", whole=False), Document("3", "a@1"), Document("4", "b")]
    drawn = draw_windows(pieces, _encode, END, windows=1, length=6, seed=0, skip=0, total=1)
    assert drawn.tolist() == [[1, 2, 3, END, 4, END]]


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
        _draw(windows=5, skip=2, total=6)
