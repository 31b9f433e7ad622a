# SPDX-License-Identifier: Apache-2.0
"""What steps are expected to cost, from the facts of a model alone."""

from __future__ import annotations

from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import (
    Layout,
    dense_layout,
    prunable_parameters,
    total_parameters,
)
from prunec.compiler.plan import Cost

_VALUE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def walk_forwards(dense_target: float) -> int:
    """Times that a walk sends a token through the layers: dense weights on the pruned path's
    inputs, pruned weights on them, and with a dense target the dense model itself."""
    return 3 if dense_target else 2


class Estimates:
    """Bytes and token-forwards of the passes over one model at one dtype."""

    def __init__(self, facts: Facts, dtype: str) -> None:
        self.facts = facts
        self.value_bytes = _VALUE_BYTES[dtype]

    def weight_bytes(self, layout: Layout) -> int:
        """A whole model."""
        return total_parameters(self.facts, layout) * self.value_bytes

    @property
    def layer_bytes(self) -> int:
        """One dense decoder layer."""
        return prunable_parameters(self.facts, dense_layout(self.facts)[:1]) * self.value_bytes

    @property
    def nested_bytes(self) -> int:
        """Factor and projection of every sublayer, as a supernet stores them: float32."""
        facts = self.facts
        heads = facts.query_heads * facts.head_dim
        values = heads * (heads + facts.hidden_size) + facts.ffn * (facts.ffn + facts.hidden_size)
        return 4 * values * facts.layers

    @property
    def relaxation_bytes(self) -> int:
        """What a search by gradients holds beside the supernet: every sublayer at its largest size,
        and the last linear map at about seven sizes, of which half the inputs stay on average."""
        facts = self.facts
        last = (facts.query_heads * facts.head_dim + facts.ffn) * facts.hidden_size
        return facts.layers * (self.layer_bytes + 7 * last * self.value_bytes // 2)

    def teacher_bytes(self, tokens: int, top_k: int) -> int:
        """Top ids and log-probabilities of the dense model, and one tail a token."""
        return tokens * (8 * top_k + 4)

    def statistics(
        self,
        tokens: int,
        *,
        groups: int,
        loss_quantiles: int = 1,
        with_gram: bool,
        with_gradients: bool,
    ) -> Cost:
        """What metrics read of text, of `groups` groups in all, as `passes.importance.collect`
        collects it. Backward passes count as two forward ones."""
        facts = self.facts
        heads = facts.query_heads * facts.head_dim
        states = tokens * facts.hidden_size
        grams = (heads**2 + facts.ffn**2) if with_gram else 0
        vectors = 2 * (heads + facts.ffn + facts.hidden_size)
        if with_gradients:
            rows = 2 * heads + 2 * facts.kv_heads * facts.head_dim + 3 * facts.ffn
            vectors += 4 * rows
        kept = groups * (4 * grams + 8 * vectors)  # a layer's, as they are stored
        spilled = (facts.layers + 1) * states * self.value_bytes if with_gradients else 0
        weights = 4 * self.layer_bytes // self.value_bytes  # float32
        return Cost(
            token_forwards=(4 if with_gradients else 1 + (loss_quantiles > 1)) * tokens,
            memory_bytes=kept
            + 12 * grams
            + (4 * states + 3 * weights if with_gradients else self.value_bytes * states)
            + self.layer_bytes,
            disk_bytes=facts.layers * kept + spilled + (4 * states if with_gradients else 0),
        )

    def walk(self, tokens: int, dense_target: float, disk_bytes: int) -> Cost:
        """A pass over all layers, with the streams of calibration tokens in memory."""
        facts = self.facts
        streams = (2 if dense_target else 1) * tokens * facts.hidden_size * self.value_bytes
        widest = max(facts.ffn, facts.query_heads * facts.head_dim)
        # Two sums, the problem, its inverse and moment and the factor, float64.
        matrices = 6 * 8 * widest * widest
        return Cost(
            token_forwards=walk_forwards(dense_target) * tokens,
            memory_bytes=streams + matrices + 3 * self.layer_bytes,
            disk_bytes=disk_bytes,
        )
