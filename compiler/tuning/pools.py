# SPDX-License-Identifier: Apache-2.0
"""Statistics of all that trials may calibrate on, and the mixture that one of them chooses."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

from torch import Tensor

from prunec.compiler.passes.importance.influence import Influence
from prunec.compiler.passes.importance.statistics import LayerStatistics, mixed
from prunec.compiler.tuning.settings import CalibrationChoice

#: Statistics that are kept for the trials to come.
KEPT_BYTES = 2**30


@dataclass(frozen=True)
class Group:
    """Windows of a pool that have statistics of their own.

    quantile: the class of their losses, 0 the easiest; number: among the groups of that class
    windows: indices into the pool's; tokens: in them
    """

    quantile: int
    number: int
    windows: tuple[int, ...]
    tokens: int


@dataclass(frozen=True)
class Pool:
    """One part of the calibration text in windows of one length.

    name: of its statistics
    load: gives a layer's statistics for every group
    turns: by layer and group, the mean over tokens of how far the layer turns the hidden states
    """

    name: str
    part: str
    length: int
    groups: tuple[Group, ...]
    load: Callable[[int], Sequence[LayerStatistics]]
    turns: Mapping[Influence, Sequence[Sequence[float]]]


class Pools:
    """Statistics of layers for any choice of calibration text, without a pass over it.

    At most about KEPT_BYTES stay in memory beside the layer at hand.
    """

    def __init__(self, pools: Sequence[Pool]) -> None:
        self._pools = {pool.name: pool for pool in pools}
        self._kept: OrderedDict[tuple[str, int], Sequence[LayerStatistics]] = OrderedDict()
        self._bytes_left = KEPT_BYTES

    def groups(self, choice: CalibrationChoice) -> list[tuple[Pool, list[int], float]]:
        """Pools that a trial reads: the pool, indices of its groups, and its share of the text."""
        found = []
        for pool in self._pools.values():
            share = choice.weights.get(pool.part, 0.0)
            if pool.length == choice.length and share > 0:
                groups = [
                    index
                    for index, group in enumerate(pool.groups)
                    if choice.quantile in (None, group.quantile) and group.number in choice.groups
                ]
                found.append((pool, groups, share))
        return found

    def mixture(self, choice: CalibrationChoice) -> list[tuple[str, int, float]]:
        """(name of a pool, index of a group, weight) of all that a trial reads."""
        found = []
        for pool, groups, share in self.groups(choice):
            tokens = sum(pool.groups[index].tokens for index in groups)
            found += [
                (pool.name, index, share * pool.groups[index].tokens / tokens) for index in groups
            ]
        return found

    def mixed(self, choice: CalibrationChoice, layer: int) -> LayerStatistics:
        """A layer's statistics over the windows that a trial chooses."""
        mixture = self.mixture(choice)
        known = {name: self._load(name, layer) for name in {name for name, _, _ in mixture}}
        return mixed(
            [known[name][index] for name, index, _ in mixture],
            [weight for _, _, weight in mixture],
        )

    def turns(self, choice: CalibrationChoice, kind: Influence) -> list[float]:
        """Of every layer the mean over tokens of 1 − cosine (`influence`) or angle over π."""
        mixture = self.mixture(choice)
        whole = sum(weight for _, _, weight in mixture)
        weighted = [
            [weight / whole * turned[index] for turned in self._pools[name].turns[kind]]
            for name, index, weight in mixture
        ]
        return [sum(layer) for layer in zip(*weighted, strict=True)]

    def _load(self, name: str, layer: int) -> Sequence[LayerStatistics]:
        key = (name, layer)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        loaded = self._pools[name].load(layer)
        self._kept[key] = loaded
        self._bytes_left -= _bytes(loaded)
        while self._bytes_left < 0:
            _, oldest = self._kept.popitem(last=False)
            self._bytes_left += _bytes(oldest)
        return loaded


def _bytes(groups: Sequence[LayerStatistics]) -> int:
    found = 0
    for sublayer in (part for group in groups for part in (group.attention, group.mlp)):
        tensors: list[Tensor | None] = [sublayer.gram, sublayer.total, sublayer.squared]
        for saliency in sublayer.saliency.values():
            tensors += [getattr(saliency, field.name) for field in fields(saliency)]
        found += sum(tensor.nbytes for tensor in tensors if tensor is not None)
    return found
