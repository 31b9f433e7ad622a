# SPDX-License-Identifier: Apache-2.0
"""Reading a checkpoint a layer at a time, and writing one a tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.facts import Facts
from prunec.compiler.model.headers import INDEX, SINGLE
from prunec.compiler.model.layout import LayerSpec, dense_layout, norm_shapes, projection_shapes
from prunec.compiler.model.tensor_file import TensorFile, TensorSpec, split

#: Values that are looked at together.
_PIECE = 2**24


class Checkpoint:
    """A folder of safetensors. Tensors are read when asked for; nothing is kept."""

    def __init__(self, folder: Path, facts: Facts) -> None:
        self.folder = folder
        self.facts = facts

    def tensor(self, name: str) -> Tensor:
        """One tensor, as stored, in memory of its own. ModelError if it holds a NaN or infinity."""
        return self._read(name, torch.clone)

    def rows(self, name: str, rows: Tensor) -> Tensor:
        """Some rows of a matrix, as `tensor` gives it whole; the others are not read."""
        return self._read(name, lambda matrix: matrix[rows])

    def _read(self, name: str, copy: Callable[[Tensor], Tensor]) -> Tensor:
        info = self.facts.tensors[name]
        try:
            with safe_open(self.folder / info.shard, framework="pt") as shard:
                tensor = copy(shard.get_tensor(name))  # the file is mapped, and may go
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{self.folder / info.shard} cannot be read: {error}") from None
        # In pieces: the check takes twice the memory of what it looks at.
        if not all(torch.isfinite(piece).all() for piece in tensor.flatten().split(_PIECE)):
            raise ModelError(f"{self.folder}: {name} holds a NaN or an infinity")
        return tensor

    def layer(self, index: int, having: LayerSpec | None = None) -> dict[str, Tensor]:
        """The tensors of one decoder layer that its config calls for, named relative to it.

        Others are left alone, such as the rotary buffers that early Llama checkpoints hold; and
        those of a sublayer that a spec, if there is one, does not have.
        """
        spec = having or dense_layout(self.facts)[index]
        names = projection_shapes(self.facts, spec) | norm_shapes(self.facts, spec)
        in_layer = self.facts.family.in_layer
        return {name: self.tensor(in_layer(index, name)) for name in sorted(names)}


def write_checkpoint(
    folder: Path,
    specs: Mapping[str, TensorSpec],
    tensors: Iterable[tuple[str, Tensor]],
    max_shard_bytes: int,
) -> list[str]:
    """Write (name, tensor) pairs as one safetensors file, or as shards with an index.

    specs: of all tensors that will come, in the order in which they are put into shards. A shard
        ends before the tensor that would take it over `max_shard_bytes`.
    Tensors may come in any order, and are converted to their spec's dtype; one is held at a time.
    Returns the files written. ModelError if the tensors are not those that were specified.
    """
    shards = split(specs, max_shard_bytes)
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = [SINGLE]
    weight_map: dict[str, str] = {}
    files: dict[str, TensorFile] = {}
    for file, shard in zip(names, shards, strict=True):
        weight_map |= dict.fromkeys(shard, file)
        files[file] = TensorFile(folder / file, shard, {"format": "pt"})
    lacking = dict(specs)
    for name, tensor in tensors:
        due = lacking.pop(name, None)
        if due is None or due.shape != tuple(tensor.shape):
            there = due.shape if due else "absent"
            raise ModelError(f"{name} is {tuple(tensor.shape)}; by its layout it is {there}")
        files[weight_map[name]].write(name, tensor)
        del tensor  # before the next one is made
    for name, due in lacking.items():
        raise ModelError(f"{name} is absent; by its layout it is {due.shape}")
    if len(shards) == 1:
        return names
    index = {
        "metadata": {"total_size": sum(spec.nbytes for spec in specs.values())},
        "weight_map": dict(sorted(weight_map.items())),
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [*names, INDEX]
