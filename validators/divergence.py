# SPDX-License-Identifier: Apache-2.0
"""How far a model's next-token distributions are from the dense model's: KL(dense ‖ model).

The dense model's distributions are kept as its likeliest tokens and one bucket for all others, so
that the two models need never be in memory together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from prunec.validators.errors import ValidationError

#: Tokens of each distribution that are kept: 1 KiB a position.
KEPT_TOKENS = 128

#: ids [positions, k] int32, log_probs [positions, k] and log_tail [positions] of a Reference.
Coarse = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Reference:
    """The dense model's likeliest next tokens at every predicted position of its windows.

    ids: [windows, positions, k] int32, likeliest first
    log_probs: [windows, positions, k] float32, of these ids
    log_tail: [windows, positions] float32, of all other tokens together (−inf where none are left)
    vocab_size: of the model that it was taken from

    float32, since in half precision a model would diverge from itself.
    """

    ids: Tensor
    log_probs: Tensor
    log_tail: Tensor
    vocab_size: int

    def at(self, window: int, positions: slice) -> Coarse:
        """Its distributions at these positions of a window."""
        ids, log_probs, log_tail = self.ids[window], self.log_probs[window], self.log_tail[window]
        return ids[positions], log_probs[positions], log_tail[positions]

    def as_tensors(self) -> dict[str, Tensor]:
        """Named tensors, to be stored; `from_tensors` makes the same Reference of them."""
        return {
            "ids": self.ids,
            "log_probs": self.log_probs,
            "log_tail": self.log_tail,
            "vocab_size": torch.tensor([self.vocab_size]),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Reference:
        """What `as_tensors` gave. ValidationError if something else was stored."""
        try:
            ids, log_probs, log_tail = (tensors[name] for name in ("ids", "log_probs", "log_tail"))
            return cls(ids, log_probs, log_tail, int(tensors["vocab_size"]))
        except (KeyError, RuntimeError) as error:
            raise ValidationError(f"these are not a reference's tensors: {error}") from None


def coarsen(log_probs: Tensor, keep: int) -> Coarse:
    """The `keep` likeliest tokens of [positions, vocabulary] log-probabilities, and the rest.

    All tokens are kept where the vocabulary has no more.
    """
    kept, ids = log_probs.topk(min(keep, log_probs.shape[-1]), dim=-1)
    return ids.to(torch.int32), kept, _log_rest(log_probs, ids)


def divergence(dense: Coarse, log_probs: Tensor) -> Tensor:
    """[positions]: KL(dense ‖ model) in nats, float64, from the model's log-probabilities.

    log_probs: [positions, vocabulary] float32. Putting tokens into one bucket never raises the
    divergence, and changes nothing where none are in it. NaN where either model's numbers are.
    """
    ids, *parts = (part.to(log_probs.device) for part in dense)
    ids = ids.long()
    found = [log_probs.gather(-1, ids), _log_rest(log_probs, ids)]
    theirs, ours = (torch.cat([a, b[..., None]], dim=-1).double() for a, b in (parts, found))
    # What the dense model rules out adds nothing, whatever the other one says.
    terms = torch.where(theirs == -torch.inf, 0.0, theirs.exp() * (theirs - ours))
    return terms.sum(dim=-1)


def _log_rest(log_probs: Tensor, ids: Tensor) -> Tensor:
    """[positions]: log-probability of all tokens but `ids`, summed over them.

    One minus the others would be rounding alone where little is left.
    """
    return log_probs.scatter(-1, ids, -torch.inf).logsumexp(dim=-1)
