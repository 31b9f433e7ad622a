# SPDX-License-Identifier: Apache-2.0
"""Who reads which documents of a source. Texts that serve different purposes share none, since
neighbouring windows of one document are too alike to judge each other."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from prunec.compiler.calibration.sources import Document

#: A document that is more than this share of its source's bytes is dealt in parts, so that one file
#: can serve several purposes; parts have about so many characters at least.
_LARGEST_SHARE, _LEAST_PART = 1 / 64, 2_048

#: Where a document may be cut, the best place first.
_BORDERS = ("\n\n", "\n", " ")


class OwnDocuments:
    """The documents of a source that are one text's own, in the order in which they come.

    source_bytes: of the source's files, 0 where it has none
    holdout: the share of the source that is kept for judging; `judges`: whether this text is to
        read that share or the rest. Which documents it is depends on their names alone.
    shares: tokens that each of the source's readers asks for; own: which of them this text is.
        Whoever has the least, by its share, gets the next document: all that read the source in
        the same order agree on who gets which.
    seen, taken: documents, or parts of them, that have come by and that were this text's own.
    """

    def __init__(
        self,
        documents: Iterable[Document],
        source_bytes: int,
        *,
        holdout: float | None = None,
        judges: bool = False,
        shares: Sequence[int] = (1,),
        own: int = 0,
    ) -> None:
        self.seen = self.taken = 0
        self._documents, self._holdout, self._judges = documents, holdout, judges
        self._shares, self._own = shares, own
        self._most = None
        if source_bytes and (holdout is not None or len(shares) > 1):
            self._most = max(_LEAST_PART, int(source_bytes * _LARGEST_SHARE))

    def __iter__(self) -> Iterator[Document]:
        given = [0] * len(self._shares)
        for number, part in self._parts():
            self.seen += 1
            held = self._holdout and is_held_out(part.name, number, self._holdout)
            if held is not None and held != self._judges:
                continue
            reader = min(range(len(given)), key=lambda one: given[one] / self._shares[one])
            given[reader] += len(part.text)
            if reader == self._own:
                self.taken += 1
                yield part

    def _parts(self) -> Iterator[tuple[int, Document]]:
        """Documents, or their parts by number."""
        for document in self._documents:
            if self._most is None or document.templated:
                yield 0, document
            else:
                yield from enumerate(_in_parts(document, self._most))


def is_held_out(name: str, number: int, share: float) -> bool:
    """Whether a document's part is among a share of all that is kept for judging.

    Of every document's parts it is each (1 / share)-th, from a place on that its name decides: the
    name without its folders, so that it is the same wherever the recipe lies.
    """
    digest = hashlib.sha256(name.rpartition("/")[2].encode()).digest()
    start = int.from_bytes(digest[:6]) / 2**48
    return math.floor((number + 1) * share + start) > math.floor(number * share + start)


def _in_parts(document: Document, most: int) -> Iterator[Document]:
    """Parts of nearly equal length, about `most` characters at most, cut between words."""
    text, parts = document.text, math.ceil(len(document.text) / most)
    begin = 0
    for number in range(1, parts):
        end = _border(text, begin, len(text) * number // parts)
        yield replace(document, text=text[begin:end], whole=False)
        begin = end
    yield replace(document, text=text[begin:])


def _border(text: str, begin: int, end: int) -> int:
    """Where a part ends that may not be longer: behind a paragraph, line or word in its latter
    half, or just there."""
    for border in _BORDERS:
        at = text.rfind(border, (begin + end) // 2, end)
        if at >= 0:
            return at + len(border)
    return end


def joined(documents: Iterable[Document]) -> Iterator[Document]:
    """Whole documents again, where parts follow each other."""
    parts: list[Document] = []
    for document in documents:
        if parts and (document.of or document.name) != (parts[0].of or parts[0].name):
            yield _whole(parts)
            parts = []
        parts.append(document)
        if document.whole:
            yield _whole(parts)
            parts = []
    if parts:
        yield _whole(parts)


def _whole(parts: Sequence[Document]) -> Document:
    return replace(parts[-1], text="".join(part.text for part in parts))
