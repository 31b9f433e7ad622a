# SPDX-License-Identifier: Apache-2.0
"""Bytes and token-forwards that recovery takes, for plans; imports no torch."""

from __future__ import annotations

from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import Layout, projection_shapes, total_parameters

#: Tokens of one part of a stored text of distributions, which go through the layers together.
PART_TOKENS = 65_536

#: Tokens, and logits, of one forward and backward pass; one window at least.
MICRO_TOKENS, MICRO_LOGITS = 4_096, 2**27

#: Logits of one batch when a model is compared with the dense one; one window at least.
JUDGED_LOGITS = 2**26

#: Ids are stored in two bytes where they fit.
SMALL_VOCABULARY = 2**16


def distribution_bytes(tokens: int, top_k: int, vocab_size: int) -> int:
    """Bytes on disk: ids, float16 log-probabilities, float32 tails."""
    id_bytes = 2 if vocab_size <= SMALL_VOCABULARY else 4
    return tokens * (top_k * (id_bytes + 2) + 4)


def micro_windows(length: int, vocab_size: int) -> int:
    """Windows of one forward and backward pass."""
    return max(1, min(MICRO_TOKENS // length, MICRO_LOGITS // (length * vocab_size)))


def training_passes(*, checkpointing: bool, hidden: bool) -> int:
    """Token-forwards of a token that is trained on: forward, backward as two, activations computed
    twice where they are checkpointed, and the dense model's where hidden states are compared."""
    return 3 + checkpointing + hidden


def adapter_parameters(facts: Facts, layout: Layout, rank: int) -> int:
    """Parameters of adapters of a rank on every projection."""
    return sum(
        rank * sum(shape)
        for spec in layout
        for shape in projection_shapes(facts, spec).values()
        if len(shape) == 2
    )


def training_bytes(
    facts: Facts, layout: Layout, rank: int, length: int, checkpointing: bool
) -> int:
    """Memory of training adapters on a CPU, in float32: the pruned model, adapters with gradient,
    two moments and the best so far, a pass's activations and four copies of its logits."""
    tokens = length * micro_windows(length, facts.vocab_size)
    widths = 8 * facts.hidden_size + 3 * (facts.ffn + facts.query_heads * facts.head_dim)
    kept = facts.hidden_size if checkpointing else widths
    activations = tokens * (facts.layers * kept + 4 * facts.vocab_size)
    adapters = 5 * adapter_parameters(facts, layout, rank)
    return 4 * (total_parameters(facts, layout) + adapters + activations)
