# SPDX-License-Identifier: Apache-2.0
"""What sources are read as: documents, and what was passed over on the way to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

#: A piece ends at a border this far behind its length, at most.
LOOK = 4096


class SourceError(Exception):
    """A source of text that cannot be read, or holds too little. `hint` says what would help."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True)
class Document:
    """A document, or a piece of one that is long.

    name: which one it is within its source, whatever the seed: a file, a row of a file, a piece
    of: of a piece, the name of the document
    whole: the document ends here; behind its other pieces there belongs no end token. In a shuffled
        order what comes behind a piece is not the next one.
    templated: a chat template has put special tokens into the text; none belong around it
    """

    text: str
    name: str
    whole: bool = True
    templated: bool = False
    of: str | None = None


@dataclass(frozen=True)
class Record:
    """A document, or a piece of one, as a file holds it: its text is None where a row has null.

    size: bytes or characters that it takes, about; name, whole, of: see `Document`
    """

    name: str
    text: str | None
    size: int
    whole: bool = True
    of: str | None = None


@dataclass
class Tally:
    """What a source's documents have been so far; `empty`: white space only, `missing`: null."""

    read: int = 0
    empty: int = 0
    missing: int = 0

    @property
    def skipped(self) -> int:
        return self.empty + self.missing


def in_pieces(document: Document, length: int) -> Iterator[Document]:
    """A document as pieces of about `length` characters, which joined are the document."""
    text, start = document.text, 0
    of = document.of or document.name
    while len(text) - start > length + LOOK:
        at = start + length
        stop = at + border(text[at : at + LOOK])
        name = f"{document.name}@{start}"
        yield replace(document, text=text[start:stop], name=name, whole=False, of=of)
        start = stop
    if start:
        yield replace(document, text=text[start:], name=f"{document.name}@{start}", of=of)
    else:
        yield document


def border(text: str) -> int:
    """Where a text is best cut: behind its first paragraph, else line, else word; else 0."""
    for end in ("\n\n", "\n\r\n", "\n", " "):
        if (at := text.find(end)) >= 0:
            return at + len(end)
    return 0
