# SPDX-License-Identifier: Apache-2.0
"""Candidates shared out among workers: each has an evaluator of its own and scores one at a time.

A score does not depend on who finds it, so that a search chooses the same whatever their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from prunec.compiler.model.layout import Layout, layout_from_plain, plain_layout
from prunec.compiler.passes.workers import Workers
from prunec.compiler.search.evaluator import Evaluator


class SharedScorer:
    """The first worker's scorer: the others do as it says until `end`."""

    def __init__(self, evaluator: Evaluator, workers: Workers) -> None:
        self.evaluator = evaluator
        self.workers = workers

    def rebase(self, layout: Layout) -> Tensor:
        self._say(base=plain_layout(layout))
        return self.evaluator.rebase(layout)

    def scored(self, layouts: Sequence[Layout], windows: Sequence[int]) -> Iterator[Tensor]:
        """Of as many layouts at once as there are workers."""
        size = self.workers.size
        for start in range(0, len(layouts), size):
            some = layouts[start : start + size]
            plain = [plain_layout(layout) for layout in some]
            self._say(layouts=plain, windows=list(windows))
            yield from _share(self.evaluator, self.workers, some, windows)

    def end(self) -> None:
        """There is no more to score."""
        self._say()

    def _say(self, **orders: Any) -> None:
        self.workers.tell({}, orders, 0)


def assist(evaluator: Evaluator, workers: Workers) -> None:
    """Do another worker's share of what the first one's `SharedScorer` is asked for."""
    head_dim = evaluator.decoder.facts.head_dim
    while orders := workers.tell({}, {}, 0)[1]:
        if "base" in orders:
            evaluator.rebase(layout_from_plain(orders["base"], head_dim))
        else:
            layouts = [layout_from_plain(plain, head_dim) for plain in orders["layouts"]]
            _share(evaluator, workers, layouts, orders["windows"])


def _share(
    evaluator: Evaluator, workers: Workers, layouts: Sequence[Layout], windows: Sequence[int]
) -> list[Tensor]:
    """Score the layout of one's own rank; tell the others, and hear of theirs."""
    ours: dict[str, Tensor] = {}
    if workers.rank < len(layouts):
        ours = {"scores": evaluator.divergences(layouts[workers.rank], windows)}
    heard = (workers.tell(ours, {}, rank)[0]["scores"] for rank in range(len(layouts)))
    return [scores.to(torch.float64) for scores in heard]
