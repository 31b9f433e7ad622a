# SPDX-License-Identifier: Apache-2.0
"""How far a model's next-token distribution is from the dense model's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class TeacherDistributions:
    """The dense model's most likely tokens at every position, and the mass of all others.

    ids: [windows, length, k] int32; log_probs: [windows, length, k] float32, of those ids;
    log_tail: [windows, length] float32, of everything else (−inf where nothing is left)
    """

    ids: Tensor
    log_probs: Tensor
    log_tail: Tensor

    @classmethod
    def from_logits(cls, logits: Tensor, top_k: int) -> TeacherDistributions:
        """logits: [windows, length, vocab] float32. All but `top_k` tokens share one bucket."""
        log_probs, ids = logits.log_softmax(dim=-1).topk(top_k, dim=-1)
        if top_k < logits.shape[-1]:
            tail = _log_remainder(log_probs)
        else:
            tail = torch.full(logits.shape[:-1], -torch.inf, device=logits.device)
        return cls(ids.to(torch.int32), log_probs, tail)

    def to(self, device: torch.device) -> TeacherDistributions:
        """The same on a device."""
        return TeacherDistributions(
            self.ids.to(device), self.log_probs.to(device), self.log_tail.to(device)
        )

    def __getitem__(self, windows: slice | Tensor) -> TeacherDistributions:
        return TeacherDistributions(
            self.ids[windows], self.log_probs[windows], self.log_tail[windows]
        )


class Teacher(Protocol):
    """Distributions of some windows, a range or by their numbers: in memory, or in a file."""

    def __getitem__(self, windows: slice | Tensor, /) -> TeacherDistributions: ...


def divergence(teacher: TeacherDistributions, logits: Tensor) -> Tensor:
    """[windows]: mean over positions of KL(dense ‖ candidate), in nats per token.

    logits: [windows, length, vocab] float32 of the candidate. Both distributions are coarsened to
    the teacher's top tokens and one bucket for the rest, which never raises the divergence and
    is exact where no token is in the bucket.
    """
    candidate = logits.log_softmax(dim=-1).gather(-1, teacher.ids.long())
    top = (teacher.log_probs.exp() * (teacher.log_probs - candidate)).sum(dim=-1)
    has_tail = teacher.log_tail.isfinite()
    tail = teacher.log_tail.exp() * (teacher.log_tail - _log_remainder(candidate))
    return (top + torch.where(has_tail, tail, 0.0)).mean(dim=-1)


@dataclass(frozen=True)
class RenormalisedTeacher:
    """The dense model's most likely tokens as if there were no others.

    ids: [windows, length, k], None where these are the whole vocabulary in its own order
    probabilities: [windows, length, k] float32; negative_entropy: [windows, length], Σ p log p
    Source: Týr-the-Pruner's code (its `sparse_kl`).
    """

    ids: Tensor | None
    probabilities: Tensor
    negative_entropy: Tensor

    @classmethod
    def of(cls, teacher: TeacherDistributions) -> RenormalisedTeacher:
        log_probs = teacher.log_probs.log_softmax(dim=-1)
        probabilities = log_probs.exp()
        negative_entropy = (probabilities * log_probs).sum(dim=-1)
        if teacher.log_tail.isfinite().any():
            return cls(teacher.ids, probabilities, negative_entropy)
        in_order = torch.empty_like(probabilities)
        in_order.scatter_(-1, teacher.ids.long(), probabilities)
        return cls(None, in_order, negative_entropy)

    def __getitem__(self, windows: slice) -> RenormalisedTeacher:
        ids = None if self.ids is None else self.ids[windows]
        return RenormalisedTeacher(ids, self.probabilities[windows], self.negative_entropy[windows])

    def divergence(self, logits: Tensor) -> Tensor:
        """[windows]: as `divergence`, but with both distributions renormalised among the top.

        Mass that a candidate puts elsewhere goes unnoticed.
        """
        logits = logits if self.ids is None else logits.gather(-1, self.ids.long())
        expected = (self.probabilities[..., None, :] @ logits[..., None])[..., 0, 0]
        return (self.negative_entropy - expected + logits.logsumexp(dim=-1)).mean(dim=-1)


def _log_remainder(log_probs: Tensor) -> Tensor:
    """log(1 − Σ exp(log_probs)) over the last axis, kept finite against rounding."""
    return torch.log1p(-log_probs.exp().sum(dim=-1).clamp(max=1 - 1e-6))
