# SPDX-License-Identifier: Apache-2.0
"""Sublayers cut to size, for the candidates to come: in memory, else in a file, else cut anew."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.layout import LayerSpec
from prunec.compiler.model.modeling.modeling_prunec import PerLayerDecoderLayer
from prunec.compiler.model.scratch import FileTensor

#: A layer's number and the spec of one of its sublayers: the other one is absent. The two never
#: share a key, except where both are absent and alike.
Key = tuple[int, LayerSpec]


class Cuts:
    """The latest sublayers that were asked for, as many as the decoder's placement has room for."""

    def __init__(self, decoder: Decoder) -> None:
        placement = decoder.placement
        self.decoder = decoder
        self._held: OrderedDict[Key, PerLayerDecoderLayer] = OrderedDict()
        self._bytes_left = placement.cut_bytes
        self._paged: CutFile | None = None
        if placement.scratch is not None:
            self._paged = CutFile(placement.cut_file_bytes, placement.scratch)

    def get(
        self, index: int, spec: LayerSpec, cut: Callable[[], Mapping[str, Tensor]]
    ) -> PerLayerDecoderLayer:
        """The sublayer of a layer at a spec; `cut` makes its tensors where there are none."""
        key = index, spec
        if key not in self._held:
            tensors = self._paged.read(key) if self._paged else None
            layer = self.decoder.layer(index, spec, cut() if tensors is None else tensors)
            self._held[key] = layer
            self._bytes_left -= _bytes(layer.state_dict())
            while self._bytes_left < 0 and len(self._held) > 1:
                self._let_go()
        self._held.move_to_end(key)
        return self._held[key]

    def _let_go(self) -> None:
        """Of the sublayer that was asked for the longest time ago."""
        key, layer = self._held.popitem(last=False)
        tensors = layer.state_dict()
        self._bytes_left += _bytes(tensors)
        if self._paged:
            self._paged.write(key, tensors)


@dataclass(frozen=True)
class _Place:
    """Where a sublayer's tensors lie in the file, one behind the other."""

    start: int
    stop: int
    tensors: tuple[tuple[str, torch.dtype, torch.Size], ...]


class CutFile:
    """Sublayers in one file without a name; those last written or read longest ago give way."""

    def __init__(self, size: int, scratch: Path) -> None:
        """size: bytes that it may grow to"""
        self._file = FileTensor((size,), torch.uint8, scratch)
        self._places: OrderedDict[Key, _Place] = OrderedDict()

    def write(self, key: Key, tensors: Mapping[str, Tensor]) -> None:
        """Nothing happens if it is there already, or has no room in the whole file."""
        size = _bytes(tensors)
        if key in self._places or size > len(self._file):
            return
        start = at = self._room(size)
        for tensor in tensors.values():
            self._file[at : at + tensor.nbytes] = tensor.cpu().view(-1).view(torch.uint8)
            at += tensor.nbytes
        what = tuple((name, tensor.dtype, tensor.shape) for name, tensor in tensors.items())
        self._places[key] = _Place(start, at, what)

    def read(self, key: Key) -> dict[str, Tensor] | None:
        """Its tensors, on the CPU; None if it is not there."""
        place = self._places.get(key)
        if place is None:
            return None
        self._places.move_to_end(key)
        found, at = {}, place.start
        for name, dtype, shape in place.tensors:
            end = at + shape.numel() * dtype.itemsize
            found[name] = self._file[at:end].view(dtype).view(shape)
            at = end
        return found

    def _room(self, size: int) -> int:
        """Where so many bytes are free in a row: the oldest go until there are."""
        while True:
            free = 0
            for place in sorted(self._places.values(), key=lambda place: place.start):
                if place.start - free >= size:
                    return free
                free = max(free, place.stop)  # an absent sublayer takes no room
            if len(self._file) - free >= size:
                return free
            self._places.popitem(last=False)


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
