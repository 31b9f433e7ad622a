# SPDX-License-Identifier: Apache-2.0
"""Windows of tokens: equal pieces of a stream of documents, drawn without overlap."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from prunec.compiler.calibration.sources import Document, SourceError

#: A pool this many times the windows asked for is cut before drawing, so that a sample spreads
#: over more documents than it would fill.
_POOL = 4


def draw_windows(
    documents: Iterable[Document],
    encode: Callable[[str], list[int]],
    end_id: int,
    *,
    windows: int,
    length: int,
    seed: int,
    skip: int,
    total: int,
) -> Tensor:
    """[windows, length] int64: the windows from `skip` on of a random draw of `total` windows.

    Documents are joined by `end_id`, which no piece of one has behind it that does not end it, and
    cut into consecutive windows, of which the draw is a sample. Calls that differ in `skip` and
    `windows` alone cut the same draw, so that two uses of one source can be kept apart. Raises
    SourceError when the text is too short.
    """
    if skip + windows > total:
        raise ValueError(f"{skip} + {windows} windows are more than the draw's {total}")
    wanted = total * length
    ids: list[int] = []
    for document in documents:
        ids.extend(encode(document.text))
        if document.whole and not document.templated:
            ids.append(end_id)
        if len(ids) >= _POOL * wanted:
            break
    pool = len(ids) // length
    if pool * length < wanted:
        raise SourceError(
            f"the source holds {len(ids):,} tokens; {wanted:,} are asked for",
            hint="ask for fewer tokens, or give more text",
        )
    order = torch.randperm(pool, generator=torch.Generator().manual_seed(seed))
    chosen = order[skip : skip + windows]
    return torch.tensor(ids[: pool * length]).reshape(pool, length)[chosen]


def cut_windows(ids: Tensor, windows: int, length: int, pieces: int) -> Tensor:
    """[windows, length]: pieces of this length, so many of each of some longer windows.

    ids: [*, at least pieces * length]; what is left behind a window's last piece is dropped
    """
    return ids[:, : pieces * length].reshape(-1, length)[:windows]
