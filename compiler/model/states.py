# SPDX-License-Identifier: Apache-2.0
"""Hidden states of many windows at one depth of a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunec.compiler.model.placement import Placement
from prunec.compiler.model.scratch import FileTensor


class HiddenStates:
    """[windows, length, hidden_size], read and written some windows at a time on the device of the
    forward pass; held there, in the host's memory or in a file."""

    def __init__(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        placement: Placement,
    ) -> None:
        self.shape = torch.Size(shape)
        self.dtype = dtype
        self.device = device
        self.placement = placement
        in_host = placement.states_on_host or placement.states_in_file
        self._where = torch.device("cpu") if in_host else device
        self._held: Tensor | FileTensor
        if placement.states_in_file:
            assert placement.scratch is not None
            self._held = FileTensor(shape, dtype, placement.scratch)
        else:
            self._held = torch.empty(self.shape, dtype=dtype, device=self._where)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, windows: slice | Tensor) -> Tensor:
        """Some windows, a range of them or by their numbers. Not to be changed in place: what is
        set is what counts."""
        if isinstance(self._held, Tensor) or isinstance(windows, slice):
            return self._held[windows].to(self.device)  # type: ignore[index]  # a slice, if a file
        return torch.cat([self[number : number + 1] for number in windows.tolist()])

    def clone(self) -> HiddenStates:
        """The same hidden states once more, in the same kind of place."""
        copy = HiddenStates(self.shape, self.dtype, self.device, self.placement)
        for number in range(len(self)):
            copy[number : number + 1] = self[number : number + 1]
        return copy

    def __setitem__(self, windows: slice | Tensor, states: Tensor) -> None:
        if isinstance(self._held, Tensor) or isinstance(windows, slice):
            self._held[windows] = states.to(self._where)  # type: ignore[index]  # as above
            return
        for number, state in zip(windows.tolist(), states, strict=True):
            self[number : number + 1] = state
