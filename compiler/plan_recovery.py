# SPDX-License-Identifier: Apache-2.0
"""How the pruned model is trained back: the steps between a method's layers and the exports."""

from __future__ import annotations

import math
from pathlib import Path

from prunec.compiler.estimates import FLOAT32
from prunec.compiler.model.layout import Layout
from prunec.compiler.plan import Estimate
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
        why, taken = "train low-rank adapters, then merge them", _lora_cost(steps, recover, start)
    else:
        why = "train each layer to give what the dense layer gives"
        taken = _blockwise_cost(steps, recover, start)
    steps.add("recover", "recover", why, steps.model | settings, inputs, taken)
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
        lambda placement: steps.sizes.peak(
            steps.sizes.reading_bytes
            + steps.sizes.vocabulary_bytes
            + steps.sizes.state_bytes(part)
            + distribution_bytes(part, top, facts.vocab_size),
            token_forwards=tokens,
            disk_bytes=distribution_bytes(tokens, top, facts.vocab_size),
            work=steps.sizes.forward(tokens, steps.text(text).length),
        ),
    )
    return name


def _lora_cost(steps: PlanBuilder, recover: LoraRecovery, start: Layout) -> Estimate:
    assert recover.sequence_length is not None
    facts, length = steps.facts, recover.sequence_length
    passes = training_passes(checkpointing=recover.checkpointing, hidden=recover.hidden > 0)
    looks = (recover.looks + 2) * (2 if recover.hidden else 1)
    memory = training_bytes(facts, start, recover.rank, length, checkpointing=recover.checkpointing)
    held = steps.sizes.dense_bytes if recover.hidden else 0
    state = 16 * adapter_parameters(facts, start, recover.rank)
    tokens = recover.epochs * passes * steps.count(TOKENS) + looks * steps.count(HELD_OUT)
    return lambda placement: steps.sizes.peak(
        memory + held,
        token_forwards=tokens,
        disk_bytes=steps.sizes.layers_bytes(start) + state,
        work=steps.sizes.forward(tokens, length, share=steps.sizes.share(start)),
    )


def _blockwise_cost(steps: PlanBuilder, recover: BlockwiseRecovery, start: Layout) -> Estimate:
    """Both streams of hidden states, and a layer with its optimiser's state in float32."""
    tokens = steps.count(TOKENS) + steps.count(HELD_OUT)
    passes = 2 + 3 * recover.epochs
    layer = 4 * steps.sizes.layer_bytes * FLOAT32 // steps.sizes.value_bytes
    sizes, length = steps.sizes, steps.text(TOKENS).length
    return lambda placement: sizes.peak(
        sizes.states_working(2 * tokens, placement) + sizes.reading_bytes + layer,
        waiting=sizes.states_waiting(2 * tokens, placement),
        token_forwards=passes * tokens,
        disk_bytes=sizes.layers_bytes(start),
        scratch_bytes=sizes.states_filed(2 * tokens, placement),
        work=sizes.forward(tokens, length, share=passes),
    )
