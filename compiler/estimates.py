# SPDX-License-Identifier: Apache-2.0
"""What memory is made of, from the facts of a model alone: the parts that all steps share.

Steps put them together in `estimates_walk.py`, `estimates_search.py` and `estimates_artefact.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import (
    Layout,
    attention_parameters,
    dense_layout,
    kv_bytes_per_token,
    prunable_parameters,
    total_parameters,
)
from prunec.compiler.model.placement import Placement
from prunec.compiler.plan import Cost, Estimate, Work

#: What a process takes before it holds anything of a model: Python, PyTorch and transformers; and
#: what it takes beside the tensors once it works on one: buffers of matrix products, and what the
#: allocator does not give back. Measured, see `benchmarks/memory.py`.
PROCESS_BYTES, BUFFER_BYTES = 520 * 2**20, 160 * 2**20

#: What the libraries of a GPU take of the host's memory.
CUDA_BYTES = 2 * 2**30

#: Logits that are alive at once, float32, see `model.decoder`; one window at least.
LOGIT_BYTES = 2**27

#: Rows of a large matrix that are worked on together, see `passes.least_squares`.
BLOCK = 1024

FLOAT32, FLOAT64 = 4, 8
_VALUE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class Windows:
    """Text: so many windows of so many tokens."""

    number: int
    length: int

    @property
    def tokens(self) -> int:
        return self.number * self.length


class Sizes:
    """Bytes of the parts of a model at one dtype, and operations of its passes."""

    def __init__(self, facts: Facts, dtype: str) -> None:
        self.facts = facts
        self.dtype = Work(dtype)
        self.value_bytes = _VALUE_BYTES[dtype]
        self.queries = facts.query_heads * facts.head_dim  # inputs of the output projection
        self.widest = max(facts.ffn, self.queries)

    def weight_bytes(self, layout: Layout) -> int:
        """A whole model."""
        return total_parameters(self.facts, layout) * self.value_bytes

    def layers_bytes(self, layout: Layout) -> int:
        """All decoder layers, as they are kept between steps."""
        return prunable_parameters(self.facts, layout) * self.value_bytes

    def share(self, layout: Layout) -> float:
        """Prunable parameters of a layout as a share of the dense model's."""
        dense = dense_layout(self.facts)
        return prunable_parameters(self.facts, layout) / prunable_parameters(self.facts, dense)

    @property
    def dense_bytes(self) -> int:
        """The whole dense model."""
        return self.weight_bytes(dense_layout(self.facts))

    @property
    def layer_bytes(self) -> int:
        """One dense decoder layer."""
        return prunable_parameters(self.facts, dense_layout(self.facts)[:1]) * self.value_bytes

    @property
    def attention_bytes(self) -> int:
        """The attention of one dense layer."""
        spec = dense_layout(self.facts)[0]
        return attention_parameters(self.facts, spec) * self.value_bytes

    @property
    def tensor_bytes(self) -> int:
        """The largest tensor of a layer."""
        return self.widest * self.facts.hidden_size * self.value_bytes

    @property
    def embedding_bytes(self) -> int:
        """The embedding, or the head."""
        return self.facts.vocab_size * self.facts.hidden_size * self.value_bytes

    @property
    def vocabulary_bytes(self) -> int:
        """Both."""
        return self.embedding_bytes * (1 if self.facts.tied else 2)

    @property
    def reading_bytes(self) -> int:
        """One dense layer, and the tensor that is being read, whose file is mapped meanwhile."""
        return self.layer_bytes + self.tensor_bytes

    def state_bytes(self, tokens: int) -> int:
        """Hidden states at one depth."""
        return tokens * self.facts.hidden_size * self.value_bytes

    def cache_bytes(self, tokens: int) -> int:
        """Keys and values of all layers."""
        return tokens * kv_bytes_per_token(self.facts, dense_layout(self.facts), self.value_bytes)

    def activation_bytes(self, text: Windows, placement: Placement) -> int:
        """A batch inside an MLP, which is wider than attention: what enters and leaves it, gate,
        up and their product."""
        widths = 3 * self.widest + 4 * self.facts.hidden_size
        return self.batch_tokens(text, placement) * widths * self.value_bytes

    def batch_tokens(self, text: Windows, placement: Placement) -> int:
        """Tokens of one forward pass: whole windows."""
        windows = max(1, placement.batch_tokens // text.length)
        return min(windows, text.number) * text.length

    def logit_bytes(self, text: Windows) -> int:
        """Logits of the windows that are compared together: in the model's dtype, in float32 and
        as log-probabilities, beside those of the windows before."""
        window = text.length * self.facts.vocab_size
        windows = min(text.number, max(1, LOGIT_BYTES // (FLOAT32 * window)))
        return windows * window * (self.value_bytes + 3 * FLOAT32)

    def states_working(self, tokens: int, placement: Placement) -> int:
        """Hidden states of a text that lie where the work is."""
        elsewhere = placement.states_in_file or placement.states_on_host
        return 0 if elsewhere else self.state_bytes(tokens)

    def states_waiting(self, tokens: int, placement: Placement) -> int:
        """Hidden states of a text that the host holds until they are needed."""
        held = placement.states_on_host and not placement.states_in_file
        return self.state_bytes(tokens) if held else 0

    def states_filed(self, tokens: int, placement: Placement) -> int:
        """Hidden states of a text that lie in a file."""
        return self.state_bytes(tokens) if placement.states_in_file else 0

    def head_held(self, placement: Placement) -> int:
        """The head in a step that reads it, and the embedding where it stays as well."""
        return self.vocabulary_bytes if placement.vocabulary_stays else self.embedding_bytes

    def vocabulary_held(self, placement: Placement) -> int:
        """What of embedding and head stays between their uses."""
        return self.vocabulary_bytes if placement.vocabulary_stays else 0

    def peak(
        self,
        working: int,
        *,
        waiting: int = 0,
        token_forwards: int = 0,
        disk_bytes: int = 0,
        scratch_bytes: int = 0,
        work: Mapping[Work, int] = MappingProxyType({}),
    ) -> Cost:
        """A step's cost. `working` bytes are those that lie on the GPU where there is one, beside
        `waiting` bytes that the host holds in any case; the rest as in `Cost`."""
        read = max(self.reading_bytes, 2 * self.embedding_bytes)
        return Cost(
            token_forwards=token_forwards,
            memory_bytes=PROCESS_BYTES + BUFFER_BYTES + waiting + working,
            host_bytes=PROCESS_BYTES + CUDA_BYTES + waiting + read,
            gpu_bytes=working,
            disk_bytes=disk_bytes,
            scratch_bytes=scratch_bytes,
            work=dict(work),
        )

    def forward(self, tokens: int, length: int, *, share: float = 1.0) -> dict[Work, int]:
        """Operations of tokens that go through all layers, or a share of them, in windows."""
        dense = prunable_parameters(self.facts, dense_layout(self.facts))
        attention = self.facts.layers * length * self.queries  # causal: half of all pairs
        return {self.dtype: int(2 * tokens * share * (dense + attention))}

    def logits(self, tokens: int) -> dict[Work, int]:
        """Operations of the head."""
        return {self.dtype: 2 * tokens * self.facts.vocab_size * self.facts.hidden_size}


def light(disk_bytes: int = 0) -> Estimate:
    """A step that holds nothing of a model."""
    return lambda placement: Cost(
        memory_bytes=PROCESS_BYTES, host_bytes=PROCESS_BYTES, disk_bytes=disk_bytes
    )


def total_work(*parts: Mapping[Work, int]) -> dict[Work, int]:
    """The sum of several parts of the work."""
    counts: Counter[Work] = Counter()
    for part in parts:
        counts.update(part)
    return dict(counts)
