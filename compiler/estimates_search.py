# SPDX-License-Identifier: Apache-2.0
"""What comparing layouts takes: the dense model's distributions, and candidates beside them."""

from __future__ import annotations

from prunec.compiler.estimates import BLOCK, FLOAT32, Sizes, Windows, total_work
from prunec.compiler.model.placement import Placement
from prunec.compiler.plan import Cost, Estimate, Work


def distribution_bytes(tokens: int, top_k: int) -> int:
    """Top ids and log-probabilities of the dense model, and one tail a token."""
    return tokens * (8 * top_k + 4)


def nested_bytes(sizes: Sizes) -> int:
    """Factor and projection of every sublayer, as a supernet stores them: float32."""
    hidden = sizes.facts.hidden_size
    values = sum(n * (n + hidden) for n in (sizes.queries, sizes.facts.ffn))
    return FLOAT32 * values * sizes.facts.layers


def teacher(sizes: Sizes, text: Windows, top_k: int) -> Estimate:
    """The dense model's distributions on a text."""
    kept = distribution_bytes(text.tokens, top_k)

    def estimate(placement: Placement) -> Cost:
        # The layers are through when the head is needed, whose file is mapped while it is read.
        layers = sizes.reading_bytes + sizes.activation_bytes(text, placement)
        layers += sizes.embedding_bytes if placement.vocabulary_stays else 0
        head = sizes.head_held(placement) + max(sizes.embedding_bytes, sizes.logit_bytes(text))
        return sizes.peak(
            sizes.states_working(text.tokens, placement) + max(layers, head),
            waiting=sizes.states_waiting(text.tokens, placement),
            token_forwards=text.tokens,
            disk_bytes=kept,
            scratch_bytes=sizes.states_filed(text.tokens, placement),
            work=total_work(
                sizes.forward(text.tokens, text.length),
                sizes.logits(text.tokens),
                {Work.READ: sizes.dense_bytes, Work.WRITE: kept},
            ),
        )

    return estimate


def search(
    sizes: Sizes,
    text: Windows,
    *,
    token_forwards: int,
    top_k: int,
    kept: float,
    level: int,
    relaxes: bool = False,
) -> Estimate:
    """A search over the layouts of a supernet, on `text`.

    token_forwards: its allowance; kept: share of the units that stay; level: neurons between the
    widths that it compares; relaxes: it descends by gradients, see `search.relaxation`
    """
    facts, n = sizes.facts, sizes.widest
    sublayers = 2 * facts.layers
    cuts = facts.layers * sizes.layer_bytes * (1 + facts.ffn // level) // 2  # at every size
    # Target and solution, rows of the factor that is in a file; the dense tensors that are sliced.
    one_cut = FLOAT32 * n * (2 * facts.hidden_size + BLOCK) + sizes.reading_bytes
    distributions = distribution_bytes(text.tokens, top_k)

    def estimate(placement: Placement) -> Cost:
        # Of the text as it is embedded, and of the candidate; of the base at several depths.
        held = sizes.states_working(2 * text.tokens, placement)
        held += min(sublayers * sizes.state_bytes(text.tokens), placement.state_bytes)
        held += 0 if placement.states_in_file else distributions
        held += min(cuts, placement.cut_bytes) + (_relaxation_bytes(sizes) if relaxes else 0)
        held += sizes.head_held(placement)
        batch, logits = sizes.activation_bytes(text, placement), sizes.logit_bytes(text)
        paged = min(max(0, cuts - placement.cut_bytes), placement.cut_file_bytes)
        return sizes.peak(
            held + max(one_cut, batch, logits, sizes.embedding_bytes),
            waiting=sizes.states_waiting(2 * text.tokens, placement),
            token_forwards=token_forwards,
            scratch_bytes=sizes.states_filed(2 * text.tokens, placement) + paged,
            work=total_work(
                sizes.forward(token_forwards, text.length, share=kept),
                sizes.logits(token_forwards),
            ),
        )

    return estimate


def _relaxation_bytes(sizes: Sizes) -> int:
    """What a search by gradients holds beside the supernet: every sublayer at its largest size,
    and the last linear map at about seven sizes, of which half the inputs stay on average."""
    last = (sizes.queries + sizes.facts.ffn) * sizes.facts.hidden_size
    return sizes.facts.layers * (sizes.layer_bytes + 7 * last * sizes.value_bytes // 2)


def judging(
    sizes: Sizes,
    text: Windows,
    *,
    models: int,
    top_k: int,
    beside: int = 0,
    disk_bytes: int = 0,
) -> Estimate:
    """Whole models of pruned layers on a held-out text, one after the other, and `beside` bytes
    that are held meanwhile; top_k: of the dense model's distributions, 0 where none are read."""
    teacher_bytes = distribution_bytes(text.tokens, top_k) if top_k else 0

    def estimate(placement: Placement) -> Cost:
        held = sizes.states_working(text.tokens, placement) + sizes.head_held(placement)
        layers = 2 * sizes.reading_bytes + sizes.activation_bytes(text, placement)
        head = max(sizes.embedding_bytes, sizes.logit_bytes(text))
        return sizes.peak(
            held + teacher_bytes + beside + max(layers, head),
            waiting=sizes.states_waiting(text.tokens, placement),
            scratch_bytes=sizes.states_filed(text.tokens, placement),
            token_forwards=models * text.tokens,
            disk_bytes=disk_bytes,
            work=total_work(
                sizes.forward(models * text.tokens, text.length),
                sizes.logits(models * text.tokens),
                {Work.READ: models * sizes.dense_bytes, Work.WRITE: disk_bytes},
            ),
        )

    return estimate
