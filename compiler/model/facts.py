# SPDX-License-Identifier: Apache-2.0
"""What is known of a model without reading a weight: the sizes in its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.families import Family, family_of
from prunec.compiler.model.headers import TensorInfo
from prunec.compiler.model.rope import check_rope

#: Beyond every model: a damaged config is refused before anything of its size is made.
_MOST_LAYERS, _LARGEST = 10_000, 2**31 - 1


@dataclass(frozen=True)
class Facts:
    """Sizes of a dense model. `tensors` is empty when only a config was read."""

    family: Family
    config: Mapping[str, Any]
    layers: int
    hidden_size: int
    query_heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab_size: int
    tied: bool
    biased: frozenset[str]
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict)

    def settled(self) -> dict[str, Any]:
        """The config with what it leaves to a default, of its own: transformers writes into it.

        Where it has no head_dim, a head is the hidden size over the dense model's query heads,
        which a pruned model's are not.
        """
        return {
            **deepcopy(dict(self.config)),
            "head_dim": self.head_dim,
            "num_key_value_heads": self.kv_heads,
            "tie_word_embeddings": self.tied,
        }


def facts_from_config(config: Mapping[str, Any]) -> Facts:
    """Facts from a parsed config.json; ModelError if it is unsupported or incomplete."""
    family, given = family_of(config), dict(config)
    if config.get("quantization_config"):
        raise ModelError(
            "the model is quantised; prunec prunes floating-point weights",
            hint="start from the original checkpoint and quantise the pruned one",
        )
    check_rope(config, family)
    # What is null is as good as left out, but KV heads are then as many as query heads.
    said = {k: v for k, v in config.items() if v is not None or k == "num_key_value_heads"}
    config = {**family.defaults, **said}
    heads, hidden = _size(config, "num_attention_heads"), _size(config, "hidden_size")
    kv_heads = _size(config, "num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise ModelError(
            f"config.json has {heads} query heads on {kv_heads} KV heads"
            f"{'' if 'num_key_value_heads' in said else ' (the default)'}; "
            "the first must be a multiple of the second"
        )
    biased = {*family.always_biased}
    for key, projections in family.biases.items():
        biased |= {*projections} if config.get(key) else set()
    return Facts(
        family=family,
        config=given,
        layers=_size(config, "num_hidden_layers"),
        hidden_size=hidden,
        query_heads=heads,
        kv_heads=kv_heads,
        head_dim=_size(config, "head_dim", default=hidden // heads),
        ffn=_size(config, "intermediate_size"),
        vocab_size=_size(config, "vocab_size"),
        tied=bool(config.get("tie_word_embeddings", False)),
        biased=frozenset(biased),
    )


def _size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        given = repr(value)[:60]
        raise ModelError(f"config.json has {key}: {given}; it must be a positive integer")
    limit = _MOST_LAYERS if key == "num_hidden_layers" else _LARGEST
    if value > limit:
        raise ModelError(f"config.json has {key} above {limit:,}, which no model has")
    return value
