# SPDX-License-Identifier: Apache-2.0
"""What is known of the Hugging Face format before anything is read."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub.errors import StrictDataclassError

from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.facts import facts_from_config
from prunec.compiler.model.folder import facts_from_folder
from prunec.compiler.model.layout import dense_layout
from prunec.exporters import EXPORTERS
from tests.published_configs import PUBLISHED


def test_a_source_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ModelError, match="has no tokenizer"):
        EXPORTERS["hf"].carried_files(tmp_path)


def test_legality_is_what_the_stock_class_accepts(tiny_llama: Callable[..., Path]) -> None:
    from transformers import LlamaConfig

    facts = facts_from_folder(tiny_llama())
    legal = EXPORTERS["hf"].attention_is_legal
    for query_heads in range(1, 13):
        try:
            LlamaConfig(hidden_size=facts.hidden_size, num_attention_heads=query_heads, head_dim=16)
        except StrictDataclassError:
            accepted = False
        else:
            accepted = True
        assert legal(facts, "uniform", query_heads, 1) == accepted
        assert legal(facts, "per_layer", query_heads, 1)
    assert not legal(facts, "uniform", 0, 0)
    assert legal(facts, "per_layer", 0, 0)
    assert not legal(facts, "per_layer", 3, 2)


def test_a_written_config_asks_for_no_kernels_and_says_what_was_left_to_a_default() -> None:
    import torch

    from prunec.exporters.hf import model_config

    published = PUBLISHED["Qwen2.5"] | {"_attn_implementation": "flash_attention_2"}
    del published["tie_word_embeddings"]
    facts = facts_from_config(published)
    layout = tuple(replace(spec, query_heads=2) for spec in dense_layout(facts))
    written = model_config(facts, layout, "uniform", torch.float32)
    assert not any("attn_implementation" in key for key in written)
    assert (written["num_attention_heads"], written["head_dim"]) == (2, 16)
    assert written["tie_word_embeddings"] is False


def test_legality_is_known_without_torch() -> None:
    code = "import sys, prunec.exporters; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
