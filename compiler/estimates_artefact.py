# SPDX-License-Identifier: Apache-2.0
"""What models take as wholes: those that write text, are written, and are measured."""

from __future__ import annotations

from dataclasses import replace

from prunec.compiler.estimates import FLOAT32, PROCESS_BYTES, Sizes, Windows, total_work
from prunec.compiler.model.layout import Layout, total_parameters
from prunec.compiler.model.placement import Placement
from prunec.compiler.plan import Cost, Estimate, Work

#: A piece of a tensor that is converted and written.
_PIECE_BYTES = 64 * 2**20

#: Bits of a weight in an ONNX graph, those of scales included.
_GRAPH_BITS = {"float32": 32, "float16": 16, "int8": 9, "int4": 5}

#: What is held of a float32 graph's weights while it is verified after it was written: they, and
#: ONNX Runtime's own copies. Measured, see `benchmarks/memory.py`.
_VERIFIED = 2.25

#: Logits of a batch that is measured, as float32, and tokens of it; one window at least. What is
#: made of them is made in parts. See `validators.perplexity`.
_LOGIT_BYTES, _TOKENS, _PART_BYTES = 2**30, 16_384, 350 * 2**20


def export(sizes: Sizes, layout: Layout) -> Estimate:
    """A checkpoint that is streamed into its files and read again for its hashes: the embedding,
    whose file is mapped while it is read, or a layer; and the piece that is being written."""
    written = sizes.weight_bytes(layout)
    largest = max(2 * sizes.embedding_bytes, sizes.layer_bytes)
    return lambda placement: sizes.peak(
        sizes.vocabulary_held(placement) + largest + _PIECE_BYTES,
        disk_bytes=written,
        work={Work.READ: 2 * written, Work.WRITE: written},
    )


def graph(sizes: Sizes, layout: Layout, precision: str) -> Estimate:
    """An ONNX graph, which is opened to be verified: its weights, mapped, and the runtime's own
    copies of them in float32, beside what is stored where that is another dtype."""
    parameters = total_parameters(sizes.facts, layout)
    written = parameters * _GRAPH_BITS[precision] // 8
    opened = round(_VERIFIED * opened_graph_bytes(sizes, FLOAT32 * parameters))
    opened += 0 if precision == "float32" else written
    return lambda placement: sizes.peak(
        opened, disk_bytes=written, work={Work.READ: 2 * written, Work.WRITE: written}
    )


def opened_graph_bytes(sizes: Sizes, weights: int) -> int:
    """Float32 weights of a graph: a head that is the embedding is another matrix there."""
    tied = sizes.facts.vocab_size * sizes.facts.hidden_size if sizes.facts.tied else 0
    return weights + FLOAT32 * tied


def answers(sizes: Sizes, kept: int, *, in_onnx: bool) -> Estimate:
    """Models that answer one after the other: in float32 by transformers, whose file of `kept`
    bytes is mapped while it is read, and a graph by its runtime."""
    weights = FLOAT32 * kept // sizes.value_bytes
    held = weights + kept
    if in_onnx:
        held = max(held, opened_graph_bytes(sizes, weights))
    return lambda placement: sizes.peak(
        sizes.vocabulary_held(placement) + held, work={Work.READ: 2 * kept}
    )


def generation(sizes: Sizes, text: Windows, *, together: int, disk_bytes: int) -> Estimate:
    """The dense model, and keys and values of the windows that it writes together."""
    held = sizes.dense_bytes + sizes.cache_bytes(together * text.length)
    return lambda placement: sizes.peak(
        sizes.vocabulary_held(placement) + held,
        token_forwards=text.tokens,
        disk_bytes=disk_bytes,
        work=total_work(
            sizes.forward(text.tokens, text.length),
            sizes.logits(text.tokens),
            {Work.READ: sizes.dense_bytes, Work.WRITE: disk_bytes},
        ),
    )


def measurement(
    sizes: Sizes, text: Windows, *, weights: int, reference_bytes: int, disk_bytes: int = 0
) -> Estimate:
    """A model of so many bytes of weights on windows of text.

    Held as a whole beside a batch and its logits where the vocabulary stays in memory; else read
    piece by piece, with hidden states of as much text as fits, once for all that does.

    reference_bytes: of distributions that are kept or compared with, as they are put together
    """
    facts = sizes.facts
    token_logits = facts.vocab_size * FLOAT32

    def estimate(placement: Placement) -> Cost:
        whole = placement.vocabulary_stays
        logits = _LOGIT_BYTES if whole else min(_LOGIT_BYTES, token_logits * placement.batch_tokens)
        windows = max(1, min(_TOKENS, logits // token_logits) // text.length)
        batch = min(windows, text.number) * text.length
        widths = 3 * sizes.widest + 4 * facts.hidden_size
        running = sizes.value_bytes * batch * max(widths, facts.vocab_size) + _PART_BYTES
        states = sizes.state_bytes(text.tokens)
        together = min(states, max(2 * logits, sizes.state_bytes(text.length)))
        held = weights if whole else max(sizes.embedding_bytes, sizes.layer_bytes) + together
        reads = 1 if whole else -(-states // max(1, together))
        return sizes.peak(
            sizes.vocabulary_held(placement) + held + running + reference_bytes,
            token_forwards=text.tokens,
            disk_bytes=disk_bytes,
            work=total_work(
                sizes.forward(text.tokens, text.length, share=weights / sizes.dense_bytes),
                sizes.logits(text.tokens),
                {Work.READ: reads * weights, Work.WRITE: disk_bytes},
            ),
        )

    return estimate


def elsewhere(sizes: Sizes, *weights: int, ranks: int = 1) -> Estimate:
    """Models that are opened as wholes at the same time, each in a process of its own; on GPUs each
    is split over so many ranks."""
    held, processes = sum(weights), len(weights) * PROCESS_BYTES

    def estimate(placement: Placement) -> Cost:
        cost = sizes.peak(held + processes, work={Work.READ: held})
        return replace(cost, gpu_bytes=held // ranks + processes)

    return estimate
