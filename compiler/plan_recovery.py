# SPDX-License-Identifier: Apache-2.0
"""How the pruned model is trained back: the steps between a method's layers and the exports."""

from __future__ import annotations

from prunec.compiler.estimates import FLOAT32, Windows, total_work
from prunec.compiler.model.layout import Layout
from prunec.compiler.model.placement import Placement
from prunec.compiler.plan import Cost, Estimate
from prunec.compiler.plan_builder import PlanBuilder
from prunec.compiler.plan_tokens import HELD_OUT, TRAINED_ON
from prunec.compiler.recipe import BlockwiseRecovery, LoraRecovery
from prunec.compiler.recovery.sizes import (
    JUDGED_LOGITS,
    PART_TOKENS,
    adapter_parameters,
    distribution_bytes,
    training_bytes,
    training_passes,
)

#: Most likely tokens of the dense model that are kept apart, as a model is trained to say the same.
TOP_K = 512

#: What is settled by the steps that a recovery reads.
_OF_TEXTS = {"source", "tokens", "sequence_length", "held_out", "held_out_tokens", "bos"}


def add_recovery(steps: PlanBuilder, start: Layout, finished: str) -> str:
    """Steps that recover the layers of the step `finished`; the step whose layers are exported."""
    recover = steps.recipe.recover
    if recover is None:
        return finished
    inputs = {"layers": finished, "tokens": TRAINED_ON, "held-out": HELD_OUT}
    settings = recover.model_dump(exclude=_OF_TEXTS) | {"layout": steps.recipe.target.layout}
    if isinstance(recover, LoraRecovery):
        settings["learning_rate"] = recover.learning_rate or default_rate(steps.facts.hidden_size)
        if recover.divergence:
            inputs |= {
                "teacher": _add_distributions(steps, TRAINED_ON, "of the text to train on"),
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


def _add_distributions(steps: PlanBuilder, text: str, why: str) -> str:
    name = text.replace("-tokens", "-teacher")
    facts, tokens = steps.facts, steps.count(text)
    top = min(TOP_K, facts.vocab_size)
    sizes, part = steps.sizes, min(tokens, PART_TOKENS)
    length = steps.text(text).length

    def estimate(placement: Placement) -> Cost:
        # As a search's teacher, a part of the text at a time, which stays in memory.
        layers = sizes.reading_bytes + sizes.activation_bytes(steps.text(text), placement)
        layers += sizes.vocabulary_held(placement)
        head = sizes.head_held(placement) + sizes.logit_bytes(steps.text(text))
        made = distribution_bytes(part, top, facts.vocab_size)
        return sizes.peak(
            sizes.state_bytes(part) + max(layers, head + made),
            token_forwards=tokens,
            disk_bytes=distribution_bytes(tokens, top, facts.vocab_size),
            work=total_work(sizes.forward(tokens, length), sizes.logits(tokens)),
        )

    steps.add(
        name,
        "distributions",
        f"the dense model's next-token distributions {why}",
        steps.model | {"top_k": top},
        {"tokens": text},
        estimate,
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
    tokens = recover.epochs * passes * steps.count(TRAINED_ON) + looks * steps.count(HELD_OUT)
    return lambda placement: steps.sizes.peak(
        steps.sizes.vocabulary_held(placement) + memory + held,
        token_forwards=tokens,
        disk_bytes=steps.sizes.layers_bytes(start) + state,
        work=steps.sizes.forward(tokens, length, share=steps.sizes.share(start)),
    )


def _blockwise_cost(steps: PlanBuilder, recover: BlockwiseRecovery, start: Layout) -> Estimate:
    """Both streams of hidden states of both texts, and of the held-out one where they are compared.
    A layer with gradient, two moments and a step in float32, and what it keeps on its way forward;
    or the head, with the logits of both models and what is made of them."""
    sizes, held_out = steps.sizes, steps.text(HELD_OUT)
    length = held_out.length
    batch = Windows(max(1, recover.batch_tokens // length), length)
    tokens = steps.count(TRAINED_ON) + held_out.tokens
    streams = 2 * tokens + 2 * held_out.tokens
    passes = 2 + 3 * recover.epochs
    wider = FLOAT32 // sizes.value_bytes
    layer = round(5 * sizes.share(start) * wider * sizes.layer_bytes)
    compared = max(length, JUDGED_LOGITS // sizes.facts.vocab_size) * sizes.facts.vocab_size

    def estimate(placement: Placement) -> Cost:
        training = layer + 2 * wider * sizes.activation_bytes(batch, placement)
        training += sizes.reading_bytes + sizes.vocabulary_held(placement)
        judging = sizes.head_held(placement) + 5 * FLOAT32 * compared
        return sizes.peak(
            sizes.states_working(streams, placement) + max(training, judging),
            waiting=sizes.states_waiting(streams, placement),
            token_forwards=passes * tokens,
            disk_bytes=sizes.layers_bytes(start),
            scratch_bytes=sizes.states_filed(streams, placement),
            work=sizes.forward(tokens, length, share=passes),
        )

    return estimate
