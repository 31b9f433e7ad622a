# SPDX-License-Identifier: Apache-2.0
"""A scorer that remembers the scores of an unfinished generation, so that none is run again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from prunec.compiler.model.layout import Layout
from prunec.compiler.search.race import Scorer

#: Scores are saved at most so often; what a kill can cost is as much again.
SECONDS_BETWEEN_SAVES = 5.0


class Remembered:
    """Scores by layout and windows, handed to `save` now and then; JSON keeps every digit."""

    def __init__(
        self,
        scorer: Scorer,
        scores: dict[str, list[float]],
        save: Callable[[dict[str, list[float]]], None],
    ) -> None:
        """scores: what an earlier run had saved of the generation that comes next."""
        self.scorer = scorer
        self.scores = dict(scores)
        self.save = save
        self._saved_at = time.monotonic()

    def forget(self) -> None:
        """The generation is finished and saved elsewhere."""
        self.scores = {}

    def rebase(self, layout: Layout) -> Tensor:
        return self.scorer.rebase(layout)

    def scored(self, layouts: Sequence[Layout], windows: Sequence[int]) -> Iterator[Tensor]:
        keys = [_key(layout, windows) for layout in layouts]
        unknown = {
            key: layout for key, layout in zip(keys, layouts, strict=True) if key not in self.scores
        }
        found = self.scorer.scored(list(unknown.values()), windows)
        for key, scores in zip(unknown, found, strict=True):
            self.scores[key] = scores.tolist()
            if time.monotonic() - self._saved_at > SECONDS_BETWEEN_SAVES:
                self.save(self.scores)
                self._saved_at = time.monotonic()
        return (torch.tensor(self.scores[key], dtype=torch.float64) for key in keys)


def _key(layout: Layout, windows: Sequence[int]) -> str:
    plain = [[spec.query_heads, spec.kv_heads, spec.ffn] for spec in layout]
    return json.dumps([plain, list(windows)])
