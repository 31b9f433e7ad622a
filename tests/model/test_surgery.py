# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunec.compiler.model.facts import facts_from_config
from prunec.compiler.model.layout import (
    LayerSelection,
    LayerSpec,
    norm_shapes,
    projection_shapes,
)
from prunec.compiler.model.surgery import slice_layer

HEADS, KV_HEADS, DIM, FFN, HIDDEN = 6, 3, 5, 11, 7


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, KV_HEADS),
    st.integers(1, 2),
    st.integers(0, FFN),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_the_rows_and_columns_of_the_units_that_stay_are_kept_and_nothing_else(
    seed: int, kv: int, per_group: int, ffn: int, biased: bool
) -> None:
    facts = facts_from_config(
        {
            "model_type": "llama",
            "hidden_size": HIDDEN,
            "num_hidden_layers": 1,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": DIM,
            "intermediate_size": FFN,
            "vocab_size": 5,
            "attention_bias": biased,
            "mlp_bias": biased,
        }
    )
    rng = np.random.default_rng(seed)
    dense = LayerSpec(HEADS, KV_HEADS, DIM, FFN)
    shapes = projection_shapes(facts, dense) | norm_shapes(facts, dense)
    tensors = {n: torch.from_numpy(rng.standard_normal(shape)) for n, shape in shapes.items()}
    groups = sorted(rng.choice(KV_HEADS, kv, replace=False).tolist())
    queries = [
        2 * g + h for g in groups for h in sorted(rng.choice(2, per_group, replace=False).tolist())
    ]
    neurons = sorted(rng.choice(FFN, ffn, replace=False).tolist())
    selection = LayerSelection(tuple(queries), tuple(groups), tuple(neurons))

    sliced = slice_layer(facts, tensors, selection)

    spec = selection.spec(DIM)
    expected = projection_shapes(facts, spec) | norm_shapes(facts, spec)
    assert {name: tuple(tensor.shape) for name, tensor in sliced.items()} == expected
    places = {
        "q": [h * DIM + i for h in queries for i in range(DIM)],
        "k": [h * DIM + i for h in groups for i in range(DIM)],
        "gate": neurons,
    }
    places |= {"o": places["q"], "v": places["k"], "up": neurons, "down": neurons}
    for name, tensor in sliced.items():
        before, after = tensors[name].numpy(), tensor.numpy()
        module = name.split(".")[1].removesuffix("_proj")
        if "norm" in name or name.endswith(("o_proj.bias", "down_proj.bias")):
            wanted = before
        elif module in ("o", "down"):
            wanted = np.stack([before[:, place] for place in places[module]], axis=1)
        else:
            wanted = np.stack([before[place] for place in places[module]])
        np.testing.assert_array_equal(after, wanted, err_msg=name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtypes_are_kept_and_the_dense_tensors_untouched(dtype: torch.dtype) -> None:
    facts = facts_from_config(
        {
            "model_type": "llama",
            "hidden_size": 4,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 3,
            "vocab_size": 5,
        }
    )
    shapes = projection_shapes(facts, LayerSpec(2, 2, 2, 3))
    tensors = {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    sliced = slice_layer(facts, tensors, LayerSelection((1,), (1,), (0, 2)))
    for name, tensor in sliced.items():
        assert tensor.dtype == dtype
        tensor.zero_()
        assert torch.equal(tensors[name], before[name])
