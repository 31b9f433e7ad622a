# SPDX-License-Identifier: Apache-2.0
"""What the walks over all layers take: supernets, resolving, statistics.

n is the width of a sublayer's last linear map, d the hidden size. What is solved is float64.
"""

from __future__ import annotations

from prunec.compiler.estimates import BLOCK, FLOAT32, FLOAT64, Sizes, Windows, total_work
from prunec.compiler.model.placement import Placement
from prunec.compiler.plan import Cost, Estimate, Work

#: Times that a stream of hidden states is read and written in a layer, where it lies in a file:
#: both sublayers read it for their statistics and again to move it on.
_READ, _WRITTEN = 4, 2

#: Hidden states of all depths that are kept in memory for gradients, and logits whose gradients are
#: taken at once, see `passes.importance`.
_STATE_BYTES, _LOGIT_BYTES = 2 * 2**30, 2**28

#: Pivots of the elimination between two updates of its matrices.
_PANEL = 128


def walk_forwards(dense_target: float) -> int:
    """Times that a walk sends a token through the layers: dense weights on the pruned path's
    inputs, pruned weights on them, and with a dense target the dense model itself."""
    return 3 if dense_target else 2


def walk(
    sizes: Sizes,
    text: Windows,
    *,
    disk_bytes: int,
    dense_target: float = 0.0,
    first_order: float = 0.0,
    eliminates: bool = True,
    kept: float = 0.0,
) -> Estimate:
    """A walk that solves every layer along `text`.

    eliminates: it orders units itself; `first_order` as in `passes.eliminate`
    kept: the share of units that are not ordered, since they stay; 0 where every size is solved
    """
    streams = 2 if dense_target else 1  # of hidden states, of all of the text
    matrix = FLOAT64 * sizes.widest**2
    matrices = sizes.facts.layers * FLOAT64 * (sizes.queries**2 + sizes.facts.ffn**2)
    passes = walk_forwards(dense_target)
    work = total_work(
        sizes.forward(text.tokens, text.length, share=passes),
        _solutions(sizes, text, dense_target, eliminates=eliminates, kept=kept),
        {Work.READ: sizes.dense_bytes, Work.WRITE: disk_bytes},
    )

    def estimate(placement: Placement) -> Cost:
        tokens = streams * text.tokens
        held = sizes.vocabulary_held(placement) + sizes.states_working(tokens, placement)
        held += sizes.layer_bytes + sizes.attention_bytes  # dense, and its pruned attention
        held += FLOAT64 * sizes.queries**2 if kept == 0 else 0  # attention, solved
        collecting = _collecting(sizes, text, placement, dense_target)
        solving = solving_bytes(sizes, placement, first_order, eliminates=eliminates)
        states, filed = sizes.states_filed(tokens, placement), placement.matrices_in_file
        through_files = {
            Work.READ: sizes.facts.layers * _READ * states + (2 * matrices if filed else 0),
            Work.WRITE: sizes.facts.layers * _WRITTEN * states + (matrices if filed else 0),
        }
        return sizes.peak(
            held + max(collecting, solving),
            waiting=sizes.states_waiting(tokens, placement),
            token_forwards=passes * text.tokens,
            disk_bytes=disk_bytes,
            scratch_bytes=states + (matrix if filed else 0),
            work=total_work(work, through_files),
        )

    return estimate


def _collecting(sizes: Sizes, text: Windows, placement: Placement, dense_target: float) -> int:
    """Gram matrix, its block that is being added, a batch's activations and its inputs; with a
    dense target both streams' inputs, what is missing, and what is added to it."""
    n, d = sizes.widest, sizes.facts.hidden_size
    batch = sizes.batch_tokens(text, placement)
    gram = FLOAT64 * n * n + BLOCK * n * (FLOAT32 + FLOAT64)
    missing = n * d * (2 * FLOAT64 + FLOAT32) if dense_target else 0
    inputs = batch * n * (FLOAT32 + (sizes.value_bytes if dense_target else 0))
    return gram + missing + inputs + sizes.activation_bytes(text, placement)


def solving_bytes(
    sizes: Sizes, placement: Placement, first_order: float, *, eliminates: bool
) -> int:
    """Inverse and moment, or a factor of the permuted Gram matrix, beside the Gram matrix itself;
    target and weight, and what is pending of a panel."""
    n, d = sizes.widest, sizes.facts.hidden_size
    matrices = 2 + (not placement.matrices_in_file) + (eliminates and first_order > 0)
    return FLOAT64 * (matrices * n * n + 2 * n * d + 2 * _PANEL * n)


def _solutions(
    sizes: Sizes, text: Windows, dense_target: float, *, eliminates: bool, kept: float
) -> dict[Work, int]:
    """Gram matrices (their lower half) and solutions of both sublayers of all layers."""
    d, layers = sizes.facts.hidden_size, sizes.facts.layers
    work: dict[Work, int] = {}
    for n in (sizes.queries, sizes.facts.ffn):
        missing = 2 * n * d if dense_target else 0
        found = {
            Work.FLOAT32: text.tokens * (n * n + missing),
            Work.FLOAT64: 2 * n * n * d,  # the target
            Work.FACTOR: n**3 // 3,
        }
        if eliminates:
            gone = n**3 - int(kept * n) ** 3
            found[Work.FLOAT64] += 2 * n * n * d + 2 * gone  # moment; updates
            found[Work.FACTOR] += n**3
            found[Work.VECTOR] = 3 * FLOAT64 * _PANEL // 2 * n * n
        left = int(kept * n) if kept else n
        found[Work.FLOAT64] += 2 * left * left * d  # projection and one cut
        work = total_work(work, found)
    return {kind: layers * count for kind, count in work.items()}


def removal(sizes: Sizes, *, disk_bytes: int) -> Estimate:
    """Units that are removed without a walk."""
    return lambda placement: sizes.peak(
        sizes.vocabulary_held(placement) + sizes.reading_bytes + sizes.layer_bytes,
        disk_bytes=disk_bytes,
        work={Work.READ: sizes.dense_bytes, Work.WRITE: disk_bytes},
    )


def statistics(
    sizes: Sizes,
    text: Windows,
    *,
    groups: int,
    loss_quantiles: int = 1,
    with_gram: bool,
    with_gradients: bool,
) -> Estimate:
    """What metrics read of text, of `groups` groups in all, as `passes.importance.collect`
    collects it. Backward passes count as two forward ones."""
    facts, layers = sizes.facts, sizes.facts.layers
    states = text.tokens * facts.hidden_size
    grams = (sizes.queries**2 + facts.ffn**2) if with_gram else 0
    vectors = 2 * (sizes.queries + facts.ffn + facts.hidden_size)
    if with_gradients:
        rows = 2 * sizes.queries + 2 * facts.kv_heads * facts.head_dim + 3 * facts.ffn
        vectors += 4 * rows
    kept = groups * (FLOAT32 * grams + FLOAT64 * vectors)  # a layer's, as they are stored
    depths = (layers + 1) * sizes.state_bytes(text.tokens)
    wider = FLOAT32 // sizes.value_bytes  # gradients are float32's
    weights = FLOAT32 * sizes.layer_bytes // sizes.value_bytes
    forwards = 4 if with_gradients else 1 + (loss_quantiles > 1)

    def estimate(placement: Placement) -> Cost:
        layer = kept + (FLOAT32 + FLOAT64) * grams + sizes.reading_bytes
        if with_gradients:
            filed = placement.states_in_file or depths > _STATE_BYTES
            waiting, scratch = FLOAT32 * states + (0 if filed else depths), depths if filed else 0
            # Sums of the weights' gradients and of their squares are of the layer's size each;
            # what a layer computes on its way forward is kept until the way back.
            layer += 3 * weights + 2 * wider * sizes.activation_bytes(text, placement)
            head = wider * sizes.head_held(placement) + 4 * _logit_bytes(sizes, text)
            held = max(head, wider * sizes.vocabulary_held(placement) + layer)
        else:
            waiting = sizes.states_waiting(text.tokens, placement)
            scratch = sizes.states_filed(text.tokens, placement)
            held = sizes.vocabulary_held(placement) + layer
            held += sizes.activation_bytes(text, placement)
            held += sizes.states_working(text.tokens, placement)
        # The gradients for what is before the last finished layer lie beside those before it.
        disk_bytes = layers * kept + (2 * FLOAT32 * states if with_gradients else 0)
        return sizes.peak(
            held,
            waiting=waiting,
            scratch_bytes=scratch,
            token_forwards=forwards * text.tokens,
            disk_bytes=disk_bytes,
            work=total_work(
                sizes.forward(text.tokens, text.length, share=forwards),
                {
                    Work.FLOAT32: layers * text.tokens * grams,
                    Work.READ: sizes.dense_bytes,
                    Work.WRITE: disk_bytes,
                },
            ),
        )

    return estimate


def _logit_bytes(sizes: Sizes, text: Windows) -> int:
    """Logits of the windows whose gradients are taken together, float32."""
    window = FLOAT32 * text.length * sizes.facts.vocab_size
    return min(text.number, max(1, _LOGIT_BYTES // window)) * window
