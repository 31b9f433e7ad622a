# SPDX-License-Identifier: Apache-2.0
"""What a Hugging Face folder can express and what it needs, known before a weight is read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.facts import Facts
from prunec.compiler.model.rope import rope_sections

LayoutKind = Literal["uniform", "per_layer"]

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "*.tiktoken")
_CARRIED = (
    "tokenizer*",
    "tokenization_*.py",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)


def attention_is_legal(
    facts: Facts, layout_kind: LayoutKind, query_heads: int, kv_heads: int
) -> bool:
    """Whether a layer may have these heads, in the class that a layout is written as.

    A uniform layout is written as the stock class, and has attention in every layer. Some stock
    configs insist that the query heads divide the hidden size, though head_dim is explicit, or that
    long rope factors fit the number of heads.
    """
    if kv_heads == 0:
        return query_heads == 0 and layout_kind == "per_layer"
    if query_heads < kv_heads or query_heads % kv_heads:
        return False
    family, whole = facts.family, (query_heads, kv_heads) == (facts.query_heads, facts.kv_heads)
    if not family.heads_are_units:
        return whole
    if layout_kind == "per_layer":
        return True
    if family.rope_counts_heads and _has_long_rope(facts):
        return query_heads == facts.query_heads
    return not family.heads_divide_hidden or facts.hidden_size % query_heads == 0


def _has_long_rope(facts: Facts) -> bool:
    return any("long_factor" in section for section in rope_sections(facts.config))


def mlp_is_legal(layout_kind: LayoutKind, ffn: int) -> bool:
    """Whether a layer may have an MLP of this width; zero is none."""
    return ffn > 0 or layout_kind == "per_layer"


def carried_files(source: Path) -> list[Path]:
    """The source model's files that an export carries over byte for byte, relative to it.

    Raises ModelError where the source has no tokenizer: an export could not be used.
    """
    if not any(any(source.glob(pattern)) for pattern in _TOKENIZERS):
        raise ModelError(
            f"{source} has no tokenizer",
            hint=f"put the model's tokenizer beside its weights (one of {', '.join(_TOKENIZERS)})",
        )
    found = {path for pattern in _CARRIED for path in source.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(source) for path in found)
