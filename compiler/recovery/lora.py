# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters on every projection of a pruned model: trained, then merged into the weights.

Source: Hu et al., LoRA (arXiv 2106.09685), by peft.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunec.compiler.diagnostics import BuildError
from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import Layout, projection_shapes
from prunec.compiler.recovery.modes import Portions, precision, seeded
from prunec.compiler.recovery.objective import Objective, Text
from prunec.compiler.recovery.ranks import angular_scores, ranks_by_importance
from prunec.compiler.recovery.schedule import Schedule
from prunec.compiler.recovery.sizes import training_passes
from prunec.compiler.recovery.training import Training, TrainingMemory, mean_loss
from prunec.validators.results import RecoveryResult

#: Held-out windows that importance is measured on, and that merging is checked on, at the last
#: positions of each: logits of whole windows would be larger than many a model.
_SOME, _LAST = 4, 64

#: How far merging may move a logit, relative to the largest: what float32 sums differ by.
_MERGE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Adapters:
    """What adapters are like; the fields are those of `recover` in a recipe."""

    rank: int
    ranks: str
    alpha: float
    dropout: float
    checkpointing: bool


@dataclass(frozen=True)
class Recovered:
    """A model that was trained back, float32 on the CPU and rounded to the dtype that it will be
    written in, and how that went."""

    model: Any
    result: RecoveryResult
    token_forwards: int


def recover_lora(
    model: Any,
    facts: Facts,
    layout: Layout,
    adapters: Adapters,
    schedule: Schedule,
    objective: Objective,
    text: Text,
    held_out: Text,
    memory: TrainingMemory,
    device: torch.device,
    dtype: torch.dtype,
    on_tokens: Callable[[int, int, str], None] = lambda done, of, note: None,
) -> Recovered:
    """Train adapters on a pruned model and merge them.

    model: a causal language model of `layout`, float32 on the CPU, its values of `dtype`; it is
    changed. On a CPU everything is computed in float32, on CUDA the frozen weights have the model's
    dtype and products are in bfloat16 unless that is float32. Raises BuildError where merging
    changes what the model says.
    """
    on_cuda = device.type == "cuda"
    autocast = on_cuda and dtype != torch.float32
    model = model.to(device, dtype if on_cuda else torch.float32).eval()
    names = projections(facts, layout)
    ranks, spent = [adapters.rank] * len(layout), 0
    if adapters.ranks == "importance":
        some = held_out.ids[:_SOME]
        with precision(device, autocast=autocast):
            scores = angular_scores(model, some)
        ranks, spent = _spread(adapters.rank, scores, names), some.numel()
    with seeded(device, (schedule.seed, 0)):
        model = with_adapters(model, facts, names, adapters, ranks)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    hidden = objective.weights.hidden > 0
    passes = training_passes(checkpointing=adapters.checkpointing, hidden=hidden)
    portions = Portions(text.ids.shape[1], facts.vocab_size)
    training = Training(
        model, trained, objective, schedule, portions, autocast=autocast, passes=passes
    )
    standing = training.run(text, held_out, memory, on_tokens)

    model, merge_error = merge(model, held_out.ids[:_SOME])
    with torch.no_grad():
        for index, layer in enumerate(names):
            for name in layer:
                weight = model.get_parameter(facts.family.in_layer(index, f"{name}.weight"))
                weight.copy_(weight.to(dtype))
    if on_cuda:
        model.to(device, dtype)
    after = mean_loss(model, objective, held_out, portions, autocast=autocast)
    before = standing.points[0].held_out
    result = RecoveryResult(
        kind="lora",
        loss=objective.weights.in_words(),
        tokens=standing.tokens,
        before=before,
        after=after,
        kept=after < before,
        trained=sum(parameter.numel() for parameter in trained.values()),
        points=tuple(standing.points),
        stopped=standing.stopped,
        merge_error=merge_error,
    )
    spent += standing.token_forwards + held_out.ids.numel()
    return Recovered(model.to("cpu", torch.float32), result, spent)


def projections(facts: Facts, layout: Layout) -> list[list[str]]:
    """Of every layer, the linear projections that it has, by their names in the layer."""
    return [
        [
            name.removesuffix(".weight")
            for name in projection_shapes(facts, spec)
            if name.endswith(".weight")
        ]
        for spec in layout
    ]


def with_adapters(
    model: Any,
    facts: Facts,
    names: Sequence[Sequence[str]],
    adapters: Adapters,
    ranks: Sequence[int],
) -> Any:
    """A peft model around `model`, whose own weights are frozen: adapters on the projections
    `names` of every layer, at its rank of `ranks`, all scaled alike. Torch's random numbers start
    them."""
    peft = import_peft()
    ranked = {
        facts.family.in_layer(index, name): ranks[index]
        for index, layer in enumerate(names)
        for name in layer
    }
    scaled = {name: adapters.alpha * rank / adapters.rank for name, rank in ranked.items()}
    config = peft.LoraConfig(
        r=adapters.rank,
        lora_alpha=adapters.alpha,
        lora_dropout=adapters.dropout,
        target_modules=list(ranked),
        rank_pattern={re.escape(name): rank for name, rank in ranked.items()},
        alpha_pattern={re.escape(name): alpha for name, alpha in scaled.items()},
    )
    model = peft.get_peft_model(model, config)
    if adapters.checkpointing:
        # Through non-reentrant checkpoints gradients flow although the embeddings are frozen.
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.eval()


@torch.no_grad()
def merge(model: Any, ids: Tensor) -> tuple[Any, float]:
    """(the plain model with the adapters in its weights, float32 on the CPU; the largest difference
    that this makes to a logit on `ids` [windows, length]). Raises BuildError if that is more than
    float32 explains."""
    model = model.to("cpu", torch.float32).eval()
    before = _logits(model, ids)
    merged = model.merge_and_unload().eval()
    error = float((_logits(merged, ids) - before).abs().max())
    largest = float(before.abs().max())
    if not error <= _MERGE_TOLERANCE * max(1.0, largest):
        raise BuildError(
            f"merging the adapters moved a logit by {error:.2g}, of logits up to {largest:.2g}",
            hint="this is a mistake of prunec or of peft: recover with kind: blockwise, or not",
        )
    return merged, error


def import_peft() -> Any:
    """The peft library; BuildError where it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise BuildError(
            f"recover.kind is lora, which needs peft: {error}", hint="pip install 'prunec[recover]'"
        ) from None
    return peft


def _spread(rank: int, scores: Sequence[float], names: Sequence[Sequence[str]]) -> list[int]:
    """A rank for every layer; what has no projection has no share in them."""
    there = [index for index, layer in enumerate(names) if layer]
    given = ranks_by_importance(rank, [scores[index] for index in there])
    of: Mapping[int, int] = dict(zip(there, given, strict=True))
    return [of.get(index, rank) for index in range(len(names))]


def _logits(model: Any, ids: Tensor) -> Tensor:
    """[windows, positions, vocabulary], float32."""
    found = (model(input_ids=window[None], use_cache=False).logits[:, -_LAST:] for window in ids)
    return torch.cat([logits.float().clone() for logits in found])
