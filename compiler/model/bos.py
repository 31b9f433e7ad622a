# SPDX-License-Identifier: Apache-2.0
"""Whether a tokenizer has a BOS token, as far as its files tell without being loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunec.compiler.model.headers import read_json

#: Classes of transformers that bring no BOS token of their own, as Llama's and Gemma's do.
_PLAIN = frozenset(
    f"{name}{fast}"
    for name in ("PreTrainedTokenizer", "Qwen2Tokenizer", "TokenizersBackend")
    for fast in ("", "Fast")
)


def lacks_bos(folder: Path) -> bool:
    """Whether the files of a tokenizer show that nothing in it begins a text. False where they do
    not tell. ModelError where one is damaged."""
    config = _json(folder / "tokenizer_config.json")
    named = [config.get("bos_token"), _json(folder / "special_tokens_map.json").get("bos_token")]
    if any(named) or not config:
        return False
    own = str(config.get("tokenizer_class") or "TokenizersBackend")
    if own not in _PLAIN and "bos_token" not in config:
        return False
    return not _begins(_json(folder / "tokenizer.json").get("post_processor"))


def _begins(processor: object) -> bool:
    """Whether what is done to a tokenized text puts a token before it."""
    if not isinstance(processor, Mapping):
        return False
    if processor.get("type") == "Sequence":
        return any(map(_begins, processor.get("processors") or ()))
    pieces = processor.get("single")
    if isinstance(pieces, list) and pieces:
        return "SpecialToken" in pieces[0]
    return "cls" in processor  # as BERT's and RoBERTa's


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
