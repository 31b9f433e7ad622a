# SPDX-License-Identifier: Apache-2.0
"""Windows of tokens: equal pieces of a stream of documents, drawn without overlap."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from prunec.compiler.calibration.sources import Document, SourceError

#: A pool this many times the windows asked for is cut before drawing, so that a sample spreads
#: over more documents than it would fill.
_POOL = 4

#: A text's token ids, and a document's, with what belongs between it and the next.
Encode = Callable[[str], list[int]]
EncodeDocument = Callable[[Document], list[int]]


class TooLittleTextError(SourceError):
    """A text that holds fewer tokens than are asked for."""

    def __init__(self, tokens: int, wanted: int) -> None:
        super().__init__(
            f"the source holds {tokens:,} tokens; {wanted:,} are asked for",
            hint="ask for fewer tokens, or give more text",
        )
        self.tokens = tokens


def document_ids(
    document: Document,
    encode: Encode,
    end_id: int,
    *,
    join: str | None = None,
    prefix: Sequence[int] = (),
) -> list[int]:
    """A document's ids, with what stands between it and the next: `join`, or the token that ends a
    text. Behind a piece that does not end it stands nothing.

    A chat template has put all special tokens there already; the `prefix` that it has begun with
    is left to the windows, so that none begins with it twice.
    """
    if join is not None:
        return encode(document.text + join if document.whole else document.text)
    ids = encode(document.text)
    if document.templated:
        begun = prefix and ids[: len(prefix)] == list(prefix)
        return ids[len(prefix) :] if begun else ids
    return [*ids, end_id] if document.whole else ids


def draw_windows(
    documents: Iterable[Document],
    encode: EncodeDocument,
    *,
    windows: int,
    length: int,
    seed: int,
    total: int,
) -> Tensor:
    """[windows, length] int64: the first windows of a random draw of `total` windows.

    Documents are cut into consecutive windows, of which the draw is a sample. Calls that differ in
    `windows` alone cut the same draw.
    """
    if windows > total:
        raise ValueError(f"{windows} windows are more than the draw's {total}")
    wanted = total * length
    ids: list[int] = []
    for document in documents:
        ids.extend(encode(document))
        if len(ids) >= _POOL * wanted:
            break
    pool = len(ids) // length
    if pool < total:
        raise TooLittleTextError(len(ids), wanted)
    order = torch.randperm(pool, generator=torch.Generator().manual_seed(seed))
    return torch.tensor(ids[: pool * length]).reshape(pool, length)[order[:windows]]


def all_windows(documents: Iterable[Document], encode: EncodeDocument, length: int) -> Tensor:
    """[windows, length] int64: the whole text in its order; what fills no window is left out."""
    ids = [token for document in documents for token in encode(document)]
    if len(ids) < length:
        raise TooLittleTextError(len(ids), length)
    count = len(ids) // length
    return torch.tensor(ids[: count * length]).reshape(count, length)


def cut_windows(ids: Tensor, windows: int, length: int, pieces: int) -> Tensor:
    """[windows, length]: pieces of this length, so many of each of some longer windows.

    ids: [*, at least pieces * length]; what is left behind a window's last piece is dropped
    """
    return ids[:, : pieces * length].reshape(-1, length)[:windows]
