# SPDX-License-Identifier: Apache-2.0
"""Sizes of the published search, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from prunec.compiler.model.facts import Facts, facts_from_config
from prunec.compiler.model.layout import (
    LayerSpec,
    attention_parameters,
    dense_layout,
    free_selection,
    mlp_parameters,
    prunable_parameters,
    sparsity,
)
from prunec.compiler.search.budget import InfeasibleTargetError
from prunec.compiler.search.grid import (
    Sizes,
    first_sizes,
    kept_parameters,
    level_sizes,
    step_sizes,
    topped_up,
)


def facts_of(**changes: Any) -> Facts:
    config = {
        "model_type": "llama",
        "vocab_size": 100,
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    return facts_from_config(config | changes)


def test_levels_lie_around_the_centre_and_are_cut_off_at_dense_and_at_nothing() -> None:
    evenly = {0: 4, -1: 5, 1: 3, -2: 6, 2: 2, -3: 7, 3: 1, -4: 8, 4: 0}
    assert level_sizes(4, 1, 8) == evenly
    # The second and further steps down would all be nothing: the first is.
    assert level_sizes(10, 16, 96) == {0: 10, -1: 26, 1: 0, -2: 42, -3: 58, -4: 74}
    assert level_sizes(8, 2, 8) == {0: 8, 1: 6, 2: 4, 3: 2, 4: 0}
    assert level_sizes(0, 5, 3) == {0: 0, -1: 3}


def test_steps_are_halved_down_to_one_head_and_whole_multiples() -> None:
    llama = facts_of(num_attention_heads=32, num_key_value_heads=32, intermediate_size=11008)
    steps = [step_sizes(llama, number, 32) for number in (1, 2, 3, 4)]
    assert steps == [(4, 1376), (2, 704), (1, 352), (1, 160)]
    assert step_sizes(facts_of(), 4, 16) == (1, 16)


def test_the_first_sizes_remove_the_same_share_of_heads_and_neurons() -> None:
    facts = facts_of()
    sizes = first_sizes(facts, 0.5, 4)
    # KV heads hold 4 · 2 · 32 · 16 of 4 · (2 · 32 · 64 + 2 · 32 · 16 + 3 · 32 · 96) parameters and
    # stay, so that 53.85 % of the others have to go: 14.8 of 32 heads stay, and of 384 neurons
    # what is then left over, in fours.
    assert sizes.heads == (3, 4, 4, 4)
    assert sizes.neurons == (44, 44, 44, 44)
    dense = prunable_parameters(facts, dense_layout(facts))
    assert dense == 4 * (4096 + 1024 + 9216)
    assert kept_parameters(facts, sizes) == 4 * 1024 + 15 * 512 + 176 * 96 == 28_672
    assert kept_parameters(facts, sizes) == dense / 2


@given(
    st.floats(0.01, 0.99),
    st.sampled_from([1, 4, 16, 40]),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 5),
    st.booleans(),
    st.sampled_from([1, 96, 97, 704]),
)
def test_the_first_sizes_have_the_size_asked_for_or_there_is_none(
    share: float, multiple_of: int, kv_heads: int, layers: int, biased: bool, ffn: int
) -> None:
    facts = facts_of(
        num_key_value_heads=kv_heads,
        num_hidden_layers=layers,
        intermediate_size=ffn,
        attention_bias=biased,
        mlp_bias=biased,
    )
    try:
        sizes = first_sizes(facts, share, multiple_of)
    except InfeasibleTargetError:
        assume(False)
    layout = [
        LayerSpec(heads, kv_heads, facts.head_dim, width)
        for heads, width in zip(sizes.heads, sizes.neurons, strict=True)
    ]
    step = mlp_parameters(facts, LayerSpec(0, 0, 8, 2)) - mlp_parameters(
        facts, LayerSpec(0, 0, 8, 1)
    )
    dense = prunable_parameters(facts, dense_layout(facts))
    assert prunable_parameters(facts, layout) == kept_parameters(facts, sizes)
    assert abs(kept_parameters(facts, sizes) - (1 - share) * dense) <= step * multiple_of + 1
    assert all(width % multiple_of == 0 for width in sizes.neurons)
    assert all(0 <= heads <= facts.query_heads for heads in sizes.heads)
    assert max(sizes.heads) - min(sizes.heads) <= 1


def test_a_target_that_the_kv_heads_stand_in_the_way_of_says_what_can_go() -> None:
    # They are 1024 of 14,336 parameters a layer.
    with pytest.raises(InfeasibleTargetError, match=r"at most 0\.9286 of the model"):
        first_sizes(facts_of(), 0.95, 4)
    first_sizes(facts_of(), 0.92, 4)


def test_what_unread_kv_heads_held_goes_to_the_mlps() -> None:
    facts = facts_of()
    sizes = first_sizes(facts, 0.5, 4)
    # Layers 0 and 2 lose the heads of their second KV head altogether.
    kept = [(0, 1, 2), (0, 1, 4, 5), (0, 1, 2, 3), (0, 1, 2, 6)]
    layout = tuple(
        free_selection(facts, heads, range(width)).spec(8)
        for heads, width in zip(kept, sizes.neurons, strict=True)
    )
    assert [(spec.kv_heads, spec.query_groups) for spec in layout] == [
        (1, None),
        (2, None),
        (1, None),
        (2, (3, 1)),
    ]
    # Each KV head held 512 parameters; four neurons hold 384: three steps are nearest to 1,024.
    wider = topped_up(facts, layout, 0.5, 4)
    assert sorted(spec.ffn for spec in wider) == [44, 48, 48, 48]
    assert sparsity(facts, wider) == pytest.approx(0.5 - (1152 - 1024) / 57_344)
    for before, after in zip(layout, wider, strict=True):
        assert attention_parameters(facts, before) == attention_parameters(facts, after)
        assert replace(before, ffn=after.ffn) == after
    # An MLP that is gone stays gone, a dense one has no room.
    gone = (*(replace(spec, ffn=0) for spec in layout[:3]), replace(layout[3], ffn=92))
    assert [spec.ffn for spec in topped_up(facts, gone, 0.5, 4)] == [0, 0, 0, 96]
    exact = tuple(
        LayerSpec(heads, 2, 8, width)
        for heads, width in zip(sizes.heads, sizes.neurons, strict=True)
    )
    assert topped_up(facts, exact, 0.5, 4) == exact


def test_sizes_survive_json() -> None:
    sizes = Sizes((1, 2), (3, 4))
    assert Sizes.from_dict({"heads": [1, 2], "neurons": [3, 4]}) == sizes
    assert Sizes.from_dict(sizes.as_dict()) == sizes
