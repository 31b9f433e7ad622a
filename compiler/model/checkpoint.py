# SPDX-License-Identifier: Apache-2.0
"""Reading a checkpoint a layer at a time, and writing one a shard at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.facts import Facts
from prunec.compiler.model.headers import INDEX, SINGLE
from prunec.compiler.model.layout import LayerSpec, dense_layout, norm_shapes, projection_shapes

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
    folder: Path, tensors: Iterable[tuple[str, Tensor]], max_shard_bytes: int
) -> list[str]:
    """Write (name, tensor) pairs as one safetensors file, or as shards with an index.

    Holds one shard in memory at a time. Returns the files written. A shard is closed before the
    tensor that would take it over `max_shard_bytes`.
    """
    weight_map: dict[str, int] = {}
    pending: dict[str, Tensor] = {}
    pending_bytes = total_bytes = shards = 0

    def close_shard() -> None:
        nonlocal pending, pending_bytes, shards
        save_file(pending, folder / f"shard-{shards}.partial", metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(pending, shards))
        pending, pending_bytes, shards = {}, 0, shards + 1

    for name, tensor in tensors:
        if pending and pending_bytes + tensor.nbytes > max_shard_bytes:
            close_shard()
        pending[name] = tensor.contiguous()
        pending_bytes += tensor.nbytes
        total_bytes += tensor.nbytes
    close_shard()

    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    if shards == 1:
        names = [SINGLE]
    for number, name in enumerate(names):
        (folder / f"shard-{number}.partial").rename(folder / name)
        (folder / name).chmod(
            0o644
        )  # the library writes for its owner only; servers read as others
    if shards == 1:
        return names
    index = {
        "metadata": {"total_size": total_bytes},
        "weight_map": {name: names[shard] for name, shard in sorted(weight_map.items())},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [*names, INDEX]
