# SPDX-License-Identifier: Apache-2.0
"""What a layout costs, in whatever a target counts: always a constant and a sum over sublayers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import (
    LayerSpec,
    kv_bytes_per_token,
    prunable_parameters,
    total_parameters,
)
from prunec.compiler.search.latency import Times

Shape = tuple[int, int]  # query heads, KV heads


@dataclass(frozen=True)
class Price:
    """The cost of layouts in one currency.

    unit: what is counted, as it stands behind a number
    constant: what a model costs whose layers are all empty
    attention: what one layer's attention costs at a shape; nothing at (0, 0)
    mlp: what one layer's MLP costs at a width; nothing at 0
    """

    unit: str
    constant: float
    attention: Callable[[Shape], float]
    mlp: Callable[[int], float]


def prunable_price(facts: Facts) -> Price:
    """Parameters of all projections: what sparsity is a share of."""
    return _by_layer(
        facts, "prunable parameters", 0, lambda spec: prunable_parameters(facts, [spec])
    )


def parameter_price(facts: Facts) -> Price:
    """All parameters; a norm goes with its sublayer, embeddings and head are the constant."""
    return _weights(facts, "parameters", 1)


def weight_price(facts: Facts, value_bytes: int) -> Price:
    """Bytes of all weights, each value in so many bytes."""
    return _weights(facts, "bytes of weights", value_bytes)


def kv_price(facts: Facts, value_bytes: int) -> Price:
    """Bytes that a token adds to the KV cache; the MLP costs nothing."""
    return _by_layer(
        facts,
        "bytes of KV cache a token",
        0,
        lambda spec: kv_bytes_per_token(facts, [spec], value_bytes),
    )


def latency_price(times: Times) -> Price:
    """Milliseconds of one forward pass, as they were measured."""
    return Price(
        "ms",
        1e3 * times.constant,
        cache(lambda shape: 1e3 * times.of_attention(shape)),
        cache(lambda width: 1e3 * times.of_mlp(width)),
    )


def _weights(facts: Facts, unit: str, value_bytes: int) -> Price:
    constant = total_parameters(facts, ())
    return _by_layer(
        facts,
        unit,
        value_bytes * constant,
        lambda spec: value_bytes * (total_parameters(facts, [spec]) - constant),
    )


def _by_layer(facts: Facts, unit: str, constant: int, cost: Callable[[LayerSpec], int]) -> Price:
    """A price from what a layer costs of which one sublayer is absent."""
    return Price(
        unit,
        constant,
        cache(lambda shape: cost(LayerSpec(shape[0], shape[1], facts.head_dim, 0))),
        cache(lambda width: cost(LayerSpec(0, 0, facts.head_dim, width))),
    )
