# SPDX-License-Identifier: Apache-2.0
"""A model is judged by what lies in its folder and by what it computes: not by what a faster kernel
leaves out, nor by what takes the place of weights that do not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from prunec.validators.errors import ValidationError
from prunec.validators.loading import open_model


@torch.no_grad()
def test_capped_attention_scores_are_capped(tiny_family: Callable[..., Path]) -> None:
    folder = tiny_family("gemma2", attn_logit_softcapping=0.2)
    ids = torch.arange(3, 43)[None]
    opened = open_model(folder, torch.float32).model(ids).logits
    capped, uncapped = (
        AutoModelForCausalLM.from_pretrained(folder, attn_implementation=kind)(ids).logits
        for kind in ("eager", "sdpa")
    )
    torch.testing.assert_close(opened, capped)
    assert (capped - uncapped).abs().max() > 1e-3


def test_a_tensor_that_does_not_fit_the_config_is_named(
    tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_llama(), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 80}))
    with pytest.raises(ValidationError) as refused:
        open_model(folder, torch.float32)
    assert refused.value.message == (
        f"{folder} does not load: "
        "model.layers.0.mlp.down_proj.weight is [64, 96], by config.json it is [64, 80]"
    )


@pytest.mark.parametrize("name", ["v_head.summary.weight", "model.layers.0.masked_bias"])
def test_a_tensor_that_computes_nothing_is_left_out(
    name: str, tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_llama(), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {name: torch.ones(4)}, folder / "model.safetensors", {"format": "pt"})
    assert open_model(folder, torch.float32).vocab_size == 300
    save_file(weights | {"head.bias": torch.ones(4)}, folder / "model.safetensors")
    with pytest.raises(ValidationError, match=r"1 unexpected tensors, the first head\.bias"):
        open_model(folder, torch.float32)


def test_an_adapter_beside_the_weights_does_not_take_their_place(
    tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_llama(), tmp_path / "model")
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tiny_llama(seed=1)), "peft_type": "LORA"})
    )
    with pytest.raises(ValidationError, match="holds an adapter"):
        open_model(folder, torch.float32)
