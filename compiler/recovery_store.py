# SPDX-License-Identifier: Apache-2.0
"""Where a recovery stands, in the store: a training's latest state, layers trained one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from prunec.compiler.layer_store import load_cut, save_cut
from prunec.compiler.passes.nested import CutLayer
from prunec.compiler.recovery.blockwise import LayerRecovery
from prunec.compiler.store import Entry


@dataclass(frozen=True)
class StoredTraining:
    """The latest state of a training, in a store entry."""

    entry: Entry

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        for step in sorted(self._saved(), reverse=True):
            if (found := self.entry.load_tensors(_state(step))) is not None:
                return found
        return None

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        earlier = {*self._saved()} - {step}
        self.entry.save_tensors(_state(step), tensors, facts)
        for old in earlier:
            self.entry.forget_tensors(_state(old))

    def _saved(self) -> Iterator[int]:
        for path in list(self.entry.folder.glob("after-*.safetensors")):
            yield int(path.name.split(".")[0].removeprefix("after-"))


def _state(step: int) -> str:
    return f"after-{step}"


@dataclass(frozen=True)
class StoredLayerRecovery:
    """Layers that were trained one by one, in a store entry."""

    entry: Entry

    def load(self, index: int) -> tuple[CutLayer, LayerRecovery] | None:
        cut, went = load_cut(self.entry, index), self.entry.load_json(f"layer-{index}")
        return (cut, LayerRecovery(**went)) if cut and went else None

    def save(self, index: int, cut: CutLayer, recovery: LayerRecovery) -> None:
        self.entry.forget_tensors(f"layer-{index}")  # never beside what is told of another one
        self.entry.save_json(f"layer-{index}", asdict(recovery))
        save_cut(self.entry, index, cut)
