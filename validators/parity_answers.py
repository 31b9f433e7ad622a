# SPDX-License-Identifier: Apache-2.0
"""Greedy answers of the model that artefacts were written from, and of one artefact beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prunec.validators.errors import ValidationError
from prunec.validators.loading import LoadedModel

#: Likeliest tokens whose log-probabilities are compared; vLLM tells no more unless it is told to.
TOP = 20


@dataclass(frozen=True)
class ReferenceAnswers:
    """What a model says after some prompts.

    prompts: [n, length] int64 token ids
    tokens: [n, new] int64, the greedy continuation
    ids: [n, new, k] int64, the likeliest tokens at every position of it, likeliest first
    log_probs: [n, new, k] float32, of these ids
    tokenizer: the model's own, of transformers; None if it has none
    """

    prompts: Tensor
    tokens: Tensor
    ids: Tensor
    log_probs: Tensor
    tokenizer: Any = field(default=None, repr=False, compare=False)

    @property
    def finite(self) -> bool:
        return not bool(self.log_probs.isnan().any())


@dataclass(frozen=True)
class Answers:
    """What a runtime says at the positions of a ReferenceAnswers.

    tokens: [n, new] int64, its likeliest
    log_probs: [n, new, k] float32, of the reference's ids
    reached: [n] int64, positions that it answered after the very text that the reference had
    """

    tokens: Tensor
    log_probs: Tensor
    reached: Tensor


@torch.inference_mode()
def reference_answers(
    model: LoadedModel | Callable[[Tensor], Tensor],
    prompts: Tensor,
    new_tokens: int,
    *,
    tokenizer: Any = None,
) -> ReferenceAnswers:
    """Continue prompts greedily, reading the whole text anew for every token: with no cache.

    model: an opened folder, or a function from ids [n, length] to logits [n, length, vocabulary];
        in float32, so that what is found later is the artefact's rounding
    prompts: [n, length] token ids
    tokenizer: what the artefacts' own must agree with; of a folder, its own unless one is given
    ValidationError if there is nothing to answer, or a folder's tokenizer does not load.
    """
    if prompts.ndim != 2 or 0 in prompts.shape or new_tokens < 1:
        raise ValidationError(
            f"prompts of shape {list(prompts.shape)} and {new_tokens} tokens after them leave "
            "nothing to compare"
        )
    if tokenizer is None and isinstance(model, LoadedModel):
        tokenizer = model.tokenizer()
    text = prompts.to(torch.long).cpu()
    kept = []
    for _ in range(new_tokens):
        if isinstance(model, LoadedModel):
            logits = model.model(input_ids=text.to(model.device), use_cache=False).logits
        else:
            logits = model(text)
        log_probs = logits[:, -1].float().log_softmax(dim=-1).cpu()
        kept.append(log_probs.topk(min(TOP, log_probs.shape[-1]), dim=-1))
        text = torch.cat([text, kept[-1].indices[:, :1]], dim=1)
    length = prompts.shape[1]
    return ReferenceAnswers(
        text[:, :length],
        text[:, length:],
        torch.stack([step.indices for step in kept], dim=1),
        torch.stack([step.values for step in kept], dim=1),
        tokenizer,
    )


def follow(reference: ReferenceAnswers, read: Callable[[Tensor], Tensor]) -> Answers:
    """Let a runtime read the prompts, and then the reference's own continuation token by token.

    read: ids [n, more] that come after what was read before → logits [n, vocabulary] of what
    follows them
    """
    tokens, found, given = [], [], reference.prompts
    for position, ids in enumerate(reference.ids.unbind(dim=1)):
        log_probs = read(given).float().cpu().log_softmax(dim=-1)
        tokens.append(log_probs.argmax(dim=-1))
        found.append(log_probs.gather(-1, ids))
        given = reference.tokens[:, position : position + 1]
    reached = torch.full((len(given),), len(tokens))
    return Answers(torch.stack(tokens, dim=1), torch.stack(found, dim=1), reached)


def compare(
    reference: ReferenceAnswers, answers: Answers, tolerance: float
) -> tuple[float, int, int]:
    """The largest difference of two log-probabilities, tokens that agree, tokens compared.

    Tokens are not compared at near-ties: where the reference's two likeliest lie within twice the
    tolerance, either may come out first. Nor is anything behind a near-tie that came out otherwise,
    in a runtime that went on with its own token.
    """
    at = torch.arange(reference.tokens.shape[1])
    read = at < answers.reached[:, None]  # [n, new]
    due, found = reference.log_probs, answers.log_probs
    apart = torch.where(due == found, 0.0, (due - found).abs())  # −inf is no further from −inf
    difference = apart[read].max().item()
    gap = due[..., 0] - due[..., 1] if due.shape[-1] > 1 else torch.full(read.shape, torch.inf)
    decided = (gap > 2 * tolerance) & read
    agreed = (answers.tokens == reference.tokens)[decided].sum()
    return float(difference), int(agreed), int(decided.sum())
