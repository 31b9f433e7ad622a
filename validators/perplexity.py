# SPDX-License-Identifier: Apache-2.0
"""Perplexity of a checkpoint folder on token windows, and of two folders against each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from prunec.validators.errors import ValidationError
from prunec.validators.loading import LoadedModel, open_model

_LOGIT_BYTES = 1 << 30  # a batch's logits, as float32: large vocabularies get smaller batches
_RESAMPLES = 2000


@dataclass(frozen=True)
class Perplexity:
    """Next-token loss on windows of equal length.

    `value` is exp(`loss`), `loss` the mean in nats per predicted token, `tokens` the predictions
    counted: windows * (length - 1). `window_losses` are the windows' own means, in order.
    A NaN or infinite loss is kept in all of them.
    """

    value: float
    loss: float
    tokens: int
    window_losses: tuple[float, ...] = field(repr=False)

    @property
    def finite(self) -> bool:
        return math.isfinite(self.value)


@dataclass(frozen=True)
class Ratio:
    """Perplexity of one model over another's, with a 95 % interval.

    The bounds are NaN where there is nothing to estimate them from: a single window, or a loss
    that is not finite.
    """

    value: float
    low: float
    high: float


def perplexity(
    folder: Path,
    windows: Tensor,
    dtype: torch.dtype,
    *,
    batch_tokens: int = 16384,
    device: str | torch.device = "cpu",
    on_progress: Callable[[int], None] | None = None,
    trust_remote_code: bool = False,
) -> Perplexity:
    """`measure_perplexity` of a checkpoint folder, loaded for this one measurement."""
    model = open_model(folder, dtype, trust_remote_code=trust_remote_code, device=device)
    return measure_perplexity(model, windows, batch_tokens=batch_tokens, on_progress=on_progress)


@torch.inference_mode()
def measure_perplexity(
    model: LoadedModel,
    windows: Tensor,
    *,
    batch_tokens: int = 16384,
    on_progress: Callable[[int], None] | None = None,
) -> Perplexity:
    """Perplexity on token ids `windows` [n, length]: each window predicts all but its first token.

    The model runs in its own dtype, the losses are float32, their means float64.
    `on_progress` is told how many windows are done so far, after every batch.
    ValidationError where there is nothing to predict, or an id lies outside the vocabulary.
    """
    _check_windows(windows, model)
    count, length = windows.shape
    rows = min(batch_tokens // length, _LOGIT_BYTES // (4 * length * model.vocab_size))
    losses: list[float] = []
    for batch in torch.split(windows, max(1, rows)):
        ids = batch.to(model.device, torch.long)
        logits = model.model(input_ids=ids, use_cache=False).logits  # [rows, length, vocab]
        for window, scores in zip(ids, logits, strict=True):
            token_losses = cross_entropy(scores[:-1].float(), window[1:], reduction="none")
            losses.append(token_losses.double().mean().item())
        if on_progress is not None:
            on_progress(len(losses))
    # Windows are of one length, so the mean of their means is the mean over tokens.
    mean = math.fsum(losses) / count if all(map(math.isfinite, losses)) else sum(losses) / count
    return Perplexity(_exp(mean), mean, count * (length - 1), tuple(losses))


def ratio_interval(dense: Perplexity, pruned: Perplexity, seed: int = 0) -> Ratio:
    """Pruned perplexity over dense, with a paired bootstrap over windows.

    Both must have been measured on the same windows: what a window has that is hard for both
    models cancels in its difference. Windows are taken as independent, which neighbours in one
    text are not quite. ValidationError if the windows differ in number or length.
    """
    if (dense.tokens, len(dense.window_losses)) != (pruned.tokens, len(pruned.window_losses)):
        raise ValidationError(
            f"perplexities of {dense.tokens:,} and {pruned.tokens:,} tokens cannot be compared",
            hint="measure both models on the same windows",
        )
    # [windows]
    differences = torch.tensor(pruned.window_losses, dtype=torch.float64) - torch.tensor(
        dense.window_losses, dtype=torch.float64
    )
    count = len(differences)
    value = _exp(differences.mean().item())
    if count < 2 or not torch.isfinite(differences).all():
        return Ratio(value, math.nan, math.nan)
    generator = torch.Generator().manual_seed(seed)
    means = torch.stack(
        [
            differences[torch.randint(count, (count,), generator=generator)].mean()
            for _ in range(_RESAMPLES)
        ]
    )
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Ratio(value, _exp(low), _exp(high))


def _check_windows(windows: Tensor, model: LoadedModel) -> None:
    if windows.ndim != 2 or windows.shape[0] < 1 or windows.shape[1] < 2:
        raise ValidationError(
            f"windows of shape {list(windows.shape)} leave nothing to predict",
            hint="give more text, or a shorter sequence_length",
        )
    low, high = int(windows.min()), int(windows.max())
    if low < 0 or high >= model.vocab_size:
        raise ValidationError(
            f"token ids {low} … {high} do not fit the vocabulary of {model.folder}, "
            f"{model.vocab_size} tokens",
            hint="tokenise the text with this model's own tokenizer",
        )


def _exp(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
