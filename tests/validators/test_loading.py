# SPDX-License-Identifier: Apache-2.0
"""A model is judged by what it computes, not by what a faster kernel leaves out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

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
