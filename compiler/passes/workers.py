# SPDX-License-Identifier: Apache-2.0
"""Processes that make one build together, as torchrun starts them: each does its share, and what it
found is put together in the order of their ranks, so that a rerun adds up alike.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

#: Rows of a large matrix that are sent at once: so much more memory a sum takes.
_ROWS = 1024

#: While one worker solves a layer the others wait; a worker that has died is noticed at once, since
#: its connections close.
_PATIENCE = timedelta(hours=12)


class WorkerLostError(Exception):
    """Another worker is gone, or no longer answers."""


@dataclass(frozen=True)
class Workers:
    """rank: this process's number; size: how many there are."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share_of(self, pieces: int) -> range:
        """This worker's of so many pieces in a row: consecutive, of all workers equally many but
        for one, none where there are more workers than pieces."""
        return range(self.rank * pieces // self.size, (self.rank + 1) * pieces // self.size)

    def owner(self, number: int) -> int:
        """Who does what cannot be shared out."""
        return number % self.size

    def gather_sum(self, tensor: Tensor, owner: int) -> None:
        """Add up all workers' tensors into the owner's, in the order of their ranks. Those of the
        others stay what they were."""
        if self.size == 1:
            return
        with _noticing():
            for rows in tensor.split(_ROWS):
                ours = rows.cpu().contiguous()
                if self.rank != owner:
                    dist.send(ours, owner)
                    continue
                theirs, total = torch.empty_like(ours), torch.zeros_like(ours)
                for rank in range(self.size):
                    if rank != owner:
                        dist.recv(theirs, rank)
                    total += ours if rank == owner else theirs
                rows.copy_(total)

    def tell(
        self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], teller: int
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What one worker, the teller, has: named tensors, on the CPU, and JSON-ready facts. What
        the others give is not read."""
        if self.size == 1:
            return dict(tensors), dict(facts)
        told = self.rank == teller
        listed = {n: [str(t.dtype).removeprefix("torch."), *t.shape] for n, t in tensors.items()}
        text = json.dumps([listed, facts]).encode() if told else b""
        with _noticing():
            length = torch.tensor([len(text)])
            dist.broadcast(length, teller)
            letter = torch.zeros(int(length), dtype=torch.uint8)
            if told:
                letter = torch.frombuffer(bytearray(text), dtype=torch.uint8)
            dist.broadcast(letter, teller)
            listed, heard = json.loads(bytes(letter.numpy()))
            found = {}
            for name, (dtype, *shape) in listed.items():
                empty = torch.empty(shape, dtype=getattr(torch, dtype))
                found[name] = tensors[name].detach().cpu().contiguous() if told else empty
                dist.broadcast(found[name].view(-1).view(torch.uint8), teller)
        return found, heard


#: One process, which does everything.
ALONE = Workers()


@contextmanager
def joined() -> Iterator[Workers]:
    """The workers that torchrun has started, or this process alone. WorkerLostError if they do not
    find each other."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    with _noticing():
        # Sums and layers go through the host's memory: they are small beside what they are made of.
        dist.init_process_group("gloo", timeout=_PATIENCE)
    yield Workers(dist.get_rank(), dist.get_world_size())
    dist.destroy_process_group()  # after an error the others may not answer any more


@contextmanager
def _noticing() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, dist.DistError) as error:
        raise WorkerLostError(str(error).strip().splitlines()[0][:200]) from error
