# SPDX-License-Identifier: Apache-2.0
"""How the pruned model is trained back: the steps between a method's layers and the exports."""

from __future__ import annotations

import math
from pathlib import Path

from prunec.compiler.model.layout import Layout, dense_layout
from prunec.compiler.plan import Cost
from prunec.compiler.plan_builder import PlanBuilder
from prunec.compiler.plan_texts import Draw, Text, add_texts
from prunec.compiler.recipe import BlockwiseRecovery, LoraRecovery, Recover
from prunec.compiler.recovery.sizes import (
    PART_TOKENS,
    adapter_parameters,
    distribution_bytes,
    training_bytes,
    training_passes,
)

TOKENS, HELD_OUT = "recovery-tokens", "held-out-tokens"

#: Most likely tokens of the dense model that are kept apart, as a model is trained to say the same.
TOP_K = 512

#: What is settled by the steps that a recovery reads.
_OF_TEXTS = {"source", "tokens", "sequence_length", "held_out", "held_out_tokens"}


def add_recovery(steps: PlanBuilder, base: Path, start: Layout, finished: str) -> str:
    """Steps that recover the layers of the step `finished`; the step whose layers are exported."""
    recover = steps.recipe.recover
    if recover is None:
        return finished
    _add_texts(steps, recover, base)
    inputs = {"layers": finished, "tokens": TOKENS, "held-out": HELD_OUT}
    settings = recover.model_dump(exclude=_OF_TEXTS) | {"layout": steps.recipe.target.layout}
    if isinstance(recover, LoraRecovery):
        settings["learning_rate"] = recover.learning_rate or default_rate(steps.facts.hidden_size)
        if recover.divergence:
            inputs |= {
                "teacher": _add_distributions(steps, TOKENS, "of the text to train on"),
                "held-out-teacher": _add_distributions(
                    steps, HELD_OUT, "of the text that stops it"
                ),
            }
        why, cost = "train low-rank adapters, then merge them", _lora_cost(steps, recover, start)
    else:
        why = "train each layer to give what the dense layer gives"
        cost = _blockwise_cost(steps, recover, start)
    steps.add("recover", "recover", why, steps.model | settings, inputs, cost)
    return "recover"


def default_rate(hidden_size: int) -> float:
    """A learning rate for adapters: the best of 1e-3, 3e-3 and 1e-2 on held-out text at a hidden
    size of 256; lower for wider models, so that it is a usual one at several thousand."""
    narrower: float = (256 / hidden_size) ** 0.75
    return round(3e-3 * narrower, 7)


def _add_texts(steps: PlanBuilder, recover: Recover, base: Path) -> None:
    source, length = recover.source, recover.sequence_length
    assert source is not None and length is not None  # settled with the recipe
    held_out = recover.held_out or source
    key = "recover.held_out" if recover.held_out else "recover.source"
    windows, held_out_windows = (
        math.ceil(tokens / length) for tokens in (recover.tokens, recover.held_out_tokens)
    )
    add_texts(
        steps,
        base,
        [
            Text(
                "recover.source",
                "text that the pruned model is trained on",
                source,
                recover.seed,
                (Draw(TOKENS, windows, length),),
            ),
            Text(
                key,
                "text that says when to stop training and whether it was of use",
                held_out,
                recover.seed,
                (Draw(HELD_OUT, held_out_windows, length),),
            ),
        ],
    )


def _add_distributions(steps: PlanBuilder, text: str, why: str) -> str:
    name = text.replace("-tokens", "-teacher")
    facts, tokens = steps.facts, steps.count(text)
    top = min(TOP_K, facts.vocab_size)
    part = min(tokens, PART_TOKENS)
    steps.add(
        name,
        "distributions",
        f"the dense model's next-token distributions {why}",
        steps.model | {"top_k": top},
        {"tokens": text},
        Cost(
            token_forwards=tokens,
            memory_bytes=steps.estimate.layer_bytes
            + part * facts.hidden_size * steps.estimate.value_bytes
            + distribution_bytes(part, top, facts.vocab_size),
            disk_bytes=distribution_bytes(tokens, top, facts.vocab_size),
        ),
    )
    return name


def _lora_cost(steps: PlanBuilder, recover: LoraRecovery, start: Layout) -> Cost:
    assert recover.sequence_length is not None
    facts, dense = steps.facts, dense_layout(steps.facts)
    passes = training_passes(checkpointing=recover.checkpointing, hidden=recover.hidden > 0)
    looks = (recover.looks + 2) * (2 if recover.hidden else 1)
    memory = training_bytes(
        facts, start, recover.rank, recover.sequence_length, checkpointing=recover.checkpointing
    )
    held = steps.estimate.weight_bytes(dense) if recover.hidden else 0
    state = 16 * adapter_parameters(facts, start, recover.rank)
    return Cost(
        token_forwards=recover.epochs * passes * steps.count(TOKENS)
        + looks * steps.count(HELD_OUT),
        memory_bytes=memory + held,
        disk_bytes=steps.estimate.weight_bytes(start) + state,
    )


def _blockwise_cost(steps: PlanBuilder, recover: BlockwiseRecovery, start: Layout) -> Cost:
    """Both streams of hidden states, and a layer with its optimiser's state in float32."""
    facts, tokens = steps.facts, steps.count(TOKENS) + steps.count(HELD_OUT)
    streams = 2 * tokens * facts.hidden_size * steps.estimate.value_bytes
    layer = 4 * steps.estimate.layer_bytes * 4 // steps.estimate.value_bytes
    return Cost(
        token_forwards=(2 + 3 * recover.epochs) * tokens,
        memory_bytes=streams + layer,
        disk_bytes=steps.estimate.weight_bytes(start),
    )
