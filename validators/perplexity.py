# SPDX-License-Identifier: Apache-2.0
"""Perplexity of a model on token windows and its divergence from the dense model, in one pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prunec.validators.divergence import Coarse, Reference, coarsen, divergence
from prunec.validators.errors import ValidationError
from prunec.validators.loading import LoadedModel
from prunec.validators.measurements import Estimate
from prunec.validators.statistics import exp_mean_interval, mean_interval

_LOGIT_BYTES = 1 << 30  # a batch's logits, as float32: large vocabularies get smaller batches
_CHUNK_BYTES = 1 << 26  # log-probabilities that are looked at together


@dataclass(frozen=True)
class Perplexity:
    """Next-token loss on windows of equal length.

    `value` is exp(`loss`), `loss` the mean in nats per predicted token, `tokens` the predictions
    counted: windows * (length - 1), fewer where windows begin with several tokens that are not
    scored. `window_losses` are the windows' own means, in order.
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
class TextMeasurement:
    """What one pass over windows of text found.

    `window_divergences`: each window's mean divergence from the reference in nats per token, if
    there was one. `reference`: this model's own distributions, if they were to be kept.
    """

    perplexity: Perplexity
    window_divergences: tuple[float, ...] | None = field(default=None, repr=False)
    reference: Reference | None = field(default=None, repr=False)


@torch.inference_mode()
def measure_text(
    model: LoadedModel,
    windows: Tensor,
    *,
    reference: Reference | None = None,
    keep: int | None = None,
    given: int = 1,
    batch_tokens: int = 16384,
    on_progress: Callable[[int], None] | None = None,
) -> TextMeasurement:
    """Perplexity on token ids `windows` [n, length]: each window predicts all but its first token,
    or the first few, where more are `given` to begin with.

    With the dense model's `reference` on the same windows, divergence from it too. `keep` is how
    many tokens of each distribution to keep as a reference for other models (`KEPT_TOKENS` is a
    good number). The model runs in its own dtype, log-probabilities are float32, means float64.
    `on_progress` is told how many windows are done so far.
    ValidationError where there is nothing to predict, an id lies outside the vocabulary, or the
    reference is of other windows or another vocabulary.
    """
    _check_windows(windows, model, given)
    length = windows.shape[1]
    if reference is not None:
        _check_reference(reference, [len(windows), length - given], model)
    rows = min(batch_tokens // length, _logit_bytes(model) // (4 * length * model.vocab_size))
    batches = torch.split(windows.to(model.device, torch.long), max(1, rows))
    losses: list[float] = []
    divergences: list[float] = []
    kept: list[Coarse] = []
    for ids, logits in zip(batches, model.logits(batches, on_progress or _untold), strict=True):
        for window, scores in zip(ids, logits, strict=True):
            found = _measure_window(
                scores[given - 1 : -1], window[given:], len(losses), reference, keep
            )
            losses.append(found[0])
            divergences += found[1]
            kept += found[2]
    return TextMeasurement(
        _perplexity(losses, length - given),
        tuple(divergences) if reference is not None else None,
        _reference(kept, len(losses), model.vocab_size) if keep is not None else None,
    )


def _logit_bytes(model: LoadedModel) -> int:
    """What a batch's logits may take, as float32: a quarter of the room that there is, since what
    a layer computes for a batch and the hidden states of others need theirs."""
    return _LOGIT_BYTES if model.room is None else min(_LOGIT_BYTES, model.room // 4)


def _untold(done: int) -> None:
    pass


def _measure_window(
    scores: Tensor, following: Tensor, index: int, reference: Reference | None, keep: int | None
) -> tuple[float, list[float], list[Coarse]]:
    """Mean loss of one window, its mean divergence if there is a reference, what is to be kept.

    scores: [positions, vocabulary] logits; following: [positions], the tokens that come next
    """
    losses: list[Tensor] = []
    diverged: list[Tensor] = []
    kept: list[Coarse] = []
    rows = max(1, _CHUNK_BYTES // (4 * scores.shape[1]))
    for start in range(0, len(scores), rows):
        here = slice(start, start + rows)
        log_probs = scores[here].float().log_softmax(dim=-1)
        losses.append(-log_probs.gather(-1, following[here, None]).double())
        if reference is not None:
            diverged.append(divergence(reference.at(index, here), log_probs))
        if keep is not None:
            ids, top, tail = coarsen(log_probs, keep)
            kept.append((ids.cpu(), top.cpu(), tail.cpu()))
    means = [torch.cat(parts).mean().item() for parts in (losses, diverged) if parts]
    return means[0], means[1:], kept


def measure_perplexity(
    model: LoadedModel,
    windows: Tensor,
    *,
    batch_tokens: int = 16384,
    on_progress: Callable[[int], None] | None = None,
) -> Perplexity:
    """`measure_text` where nothing but the perplexity is wanted."""
    found = measure_text(model, windows, batch_tokens=batch_tokens, on_progress=on_progress)
    return found.perplexity


def compare_texts(
    dense: Perplexity,
    pruned: Perplexity,
    divergences: Sequence[float] | None,
    *,
    serial: bool = False,
) -> tuple[Estimate, Estimate]:
    """Pruned perplexity over dense, and mean divergence in nats per token, with their intervals.

    Both models must have been measured on the same windows: what a window has that is hard for
    both cancels in its difference, and whole windows are drawn in the bootstrap. They count as
    independent draws from their text, unless they are `serial`, all of it in its order. NaN stays
    NaN, and without divergences theirs is unknown. ValidationError if the windows differ in number
    or length.
    """
    if (dense.tokens, len(dense.window_losses)) != (pruned.tokens, len(pruned.window_losses)):
        raise ValidationError(
            f"perplexities of {dense.tokens:,} and {pruned.tokens:,} tokens cannot be compared",
            hint="measure both models on the same windows",
        )
    if divergences is not None and len(divergences) != len(pruned.window_losses):
        raise ValidationError(
            f"{len(divergences)} divergences and {len(pruned.window_losses)} losses of windows "
            "cannot be of the same windows",
            hint="measure both on the same windows",
        )
    pairs = zip(pruned.window_losses, dense.window_losses, strict=True)
    differences = [ours - theirs for ours, theirs in pairs]
    diverged = Estimate.unknown("windows")
    if divergences is not None:
        diverged = mean_interval(divergences, "windows", serial=serial)
    return exp_mean_interval(differences, "windows", serial=serial), diverged


def _perplexity(losses: Sequence[float], predictions: int) -> Perplexity:
    count = len(losses)
    # Windows are of one length, so the mean of their means is the mean over tokens.
    mean = math.fsum(losses) / count if all(map(math.isfinite, losses)) else sum(losses) / count
    return Perplexity(_exp(mean), mean, count * predictions, tuple(losses))


def _reference(chunks: Sequence[Coarse], windows: int, vocab_size: int) -> Reference:
    ids, log_probs, log_tail = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return Reference(
        ids.unflatten(0, (windows, -1)),
        log_probs.unflatten(0, (windows, -1)),
        log_tail.unflatten(0, (windows, -1)),
        vocab_size,
    )


def _check_windows(windows: Tensor, model: LoadedModel, given: int) -> None:
    if windows.ndim != 2 or windows.shape[0] < 1 or windows.shape[1] <= given:
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


def _check_reference(reference: Reference, due: list[int], model: LoadedModel) -> None:
    """due: [windows, predictions]"""
    if list(reference.log_tail.shape) != due:
        raise ValidationError(
            f"the dense model was measured at {list(reference.log_tail.shape)} positions, "
            f"{model.folder} is to be at {due}",
            hint="measure both models on the same windows",
        )
    if reference.vocab_size != model.vocab_size:
        raise ValidationError(
            f"{model.folder} has {model.vocab_size:,} tokens, the dense model has "
            f"{reference.vocab_size:,}: their distributions cannot be compared",
        )


def _exp(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
