# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from prunec.validators.completion import complete
from prunec.validators.errors import ValidationError


def test_it_is_the_argmax_again_and_again(saved_llama: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(saved_llama, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(saved_llama)
    ids = tokenizer("def f(x):\n    ", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        for _ in range(8):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    expected = tokenizer.decode(ids[0])
    assert complete(saved_llama, "def f(x):\n    ", 8, torch.float32) == expected


def test_a_generation_config_that_samples_changes_nothing(llama: Path, saved_llama: Path) -> None:
    (llama / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0})
    )
    plain = complete(saved_llama, "abc", 8, torch.float32)
    assert complete(llama, "abc", 8, torch.float32) == plain


def test_a_folder_without_a_tokenizer_is_refused(llama: Path) -> None:
    for path in llama.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ValidationError, match=r"tokenizer of .* does not load"):
        complete(llama, "abc", 1, torch.float32)


def test_an_empty_prompt_is_refused(saved_llama: Path) -> None:
    with pytest.raises(ValidationError, match="empty prompt"):
        complete(saved_llama, "", 1, torch.float32)
