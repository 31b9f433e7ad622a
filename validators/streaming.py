# SPDX-License-Identifier: Apache-2.0
"""A model that is larger than memory: its weights stay on disk, and each layer is read to be run.

transformers opens it as it opens any other; accelerate leaves the weights where they are. Texts
then go through it layer by layer: all windows, as far as their hidden states fit into memory, pass
one layer before the next one is read. Accelerate's own order would read the whole model for every
batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.hooks import remove_hook_from_submodules
from torch import Tensor

from prunec.validators.errors import ValidationError
from prunec.validators.headers import TensorHeader

#: What `from_pretrained` is to be given as `device_map`, that it reads no weight.
ON_DISK = {"": "disk"}

#: Values that are read and converted together.
_PIECE = 2**20
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


class Streamed:
    """The passes over a model of transformers that was opened with `device_map=ON_DISK`.

    The model itself can be called as well, to generate: every part of it then reads its weights
    when it is run.
    """

    def __init__(
        self,
        model: Any,
        folder: Path,
        tensors: Mapping[str, TensorHeader],
        device: torch.device,
    ) -> None:
        """tensors: the headers of the folder's files, by name; parts are run on `device`

        ValidationError if the files do not hold the model's weights under its own names.
        """
        self._model = model
        remove_hook_from_submodules(model)  # accelerate would read every matrix for every batch
        for module in model.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = buffer.to(device)
        # By weight, not by name: of weights that are tied, only one has its name in the files.
        named = list(model.named_parameters(remove_duplicate=False))
        stored = {weight: tensors[name] for name, weight in named if name in tensors}
        for name, weight in named:
            if weight not in stored or stored[weight].dtype not in _DTYPES:
                raise ValidationError(
                    f"{folder} cannot be read part by part: {name} is not stored as it is used",
                    hint="give it as much memory as its weights take",
                )

        layers = list(model.base_model.layers)
        self._layers = [_Part(layer, folder, stored, device) for layer in layers]
        inside = {module for layer in layers for module in layer.modules()}
        self._others = {
            module: _Part(module, folder, stored, device)
            for module in model.modules()
            if module._parameters and module not in inside
        }

    @property
    def largest_part(self) -> int:
        """Bytes of the weights that are in memory at once."""
        return max(part.bytes for part in (*self._layers, *self._others.values()))

    def logits(
        self, batches: Sequence[Tensor], room: int, on_progress: Callable[[int], None]
    ) -> Iterator[Tensor]:
        """[windows, length, vocabulary] for every batch of ids [windows, length], in order.

        The model is read once for as many batches as have hidden states of `room` bytes together,
        one at least. `on_progress` is told how many windows' worth of layers is behind it.
        """
        width = self._model.get_input_embeddings().embedding_dim * self._model.dtype.itemsize
        done = 0
        for group in _groups(batches, room // width):
            windows = sum(map(len, group))
            states, given = self._embedded(group)
            for number, layer in enumerate(self._layers):
                with layer.held():
                    for place, ids in enumerate(group):
                        states[place] = layer.module(states[place], **given[ids.shape][number])
                on_progress(done + windows * (number + 1) // len(self._layers))
            yield from self._answers(states)
            done += windows

    def _embedded(
        self, batches: Sequence[Tensor]
    ) -> tuple[list[Tensor], dict[torch.Size, list[dict[str, Any]]]]:
        """What the first layer is given for each batch, and beside it what every layer is, by the
        shape of the ids: positions, masks, windows."""
        states, given = [], {}
        with self._others[self._model.get_input_embeddings()].held():
            for ids in batches:
                noted = self._noted(ids)
                states.append(noted[0][0])
                given[ids.shape] = [others for _, others in noted]
        return states, given

    def _noted(self, ids: Tensor) -> list[tuple[Tensor, dict[str, Any]]]:
        """What the stock forward pass gives to layers that do no more than note it."""
        noted: list[tuple[Tensor, dict[str, Any]]] = []

        def note(hidden: Tensor, **others: Any) -> Tensor:
            noted.append((hidden, others))
            return hidden

        with self._instead(note):
            self._model.base_model(input_ids=ids, use_cache=False)
        return noted

    def _answers(self, states: list[Tensor]) -> Iterator[Tensor]:
        """Logits of hidden states behind the last layer; lets go of one after the other."""
        states.reverse()
        with self._others[self._model.get_output_embeddings()].held():
            while states:
                yield self._answer(states.pop())

    def _answer(self, hidden: Tensor) -> Tensor:
        """What the stock forward pass makes of hidden states that its layers hand on."""
        with self._instead(lambda _, **others: hidden):
            logits: Tensor = self._model(inputs_embeds=hidden, use_cache=False).logits
        return logits

    @contextmanager
    def _instead(self, forward: Callable[..., Tensor]) -> Iterator[None]:
        """Layers that do something else, and read no weights."""
        for layer in self._layers:
            layer.module.forward = forward
        try:
            yield
        finally:
            for layer in self._layers:
                layer.module.forward = layer


class _Part:
    """A part of a model that reads its weights when it is run, or for as long as it is held."""

    def __init__(
        self,
        module: Any,
        folder: Path,
        stored: Mapping[Tensor, TensorHeader],
        device: torch.device,
    ) -> None:
        """stored: where the weights of the module lie, among others"""
        self.module = module
        self._folder, self._stored, self._device = folder, stored, device
        self._forward = module.forward
        self._absent: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
        self._is_held = False
        module.forward = self

    @property
    def bytes(self) -> int:
        return sum(weight.nbytes for weight in self._absent.values())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.held():
            return self._forward(*args, **kwargs)

    @contextmanager
    def held(self) -> Iterator[None]:
        """ValidationError if a file is no longer what its header said."""
        if self._is_held:
            yield
            return
        try:
            self._is_held = True
            for name, weight in self._absent.items():
                header = self._stored[weight]
                there = _read(self._folder / header.file, header, weight.dtype)
                self.module.load_state_dict({name: there.to(self._device)}, False, assign=True)
                del there
            yield
        finally:
            self.module.load_state_dict(self._absent, False, assign=True)
            self._is_held = False


def _read(path: Path, header: TensorHeader, dtype: torch.dtype) -> Tensor:
    """A tensor of a file at a dtype. Read, not mapped: what is mapped counts as memory as well, and
    is read by the page, when and as often as the system likes."""
    found = torch.empty(header.shape, dtype=dtype)
    held = _DTYPES[header.dtype]
    with path.open("rb") as file:
        file.seek(header.begin)
        for piece in found.view(-1).split(_PIECE):
            values = np.fromfile(file, np.uint8, piece.numel() * held.itemsize)
            if len(values) != piece.numel() * held.itemsize:
                raise ValidationError(f"{path} has become shorter since it was opened")
            piece.copy_(torch.from_numpy(values).view(held))
    return found


def _groups(batches: Sequence[Tensor], tokens: int) -> Iterator[list[Tensor]]:
    """Batches in order, as many together as have so many tokens; one at least."""
    group: list[Tensor] = []
    for batch in batches:
        if group and sum(ids.numel() for ids in (*group, batch)) > tokens:
            yield group
            group = []
        group.append(batch)
    if group:
        yield group
