# SPDX-License-Identifier: Apache-2.0
"""What transformers answers from a checkpoint folder, a token at a time with its KV cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunec.validators.loading import open_model
from prunec.validators.parity_answers import Answers, ReferenceAnswers, follow


@torch.inference_mode()
def hf_answers(
    folder: Path,
    reference: ReferenceAnswers,
    dtype: torch.dtype,
    *,
    trust_remote_code: bool,
    device: str | torch.device,
) -> Answers:
    """The model runs in `dtype`. ValidationError if the folder does not load."""
    opened = open_model(folder, dtype, trust_remote_code=trust_remote_code, device=device)
    cache: Any = None
    mask = torch.ones(len(reference.prompts), 0, dtype=torch.long)

    def read(ids: Tensor) -> Tensor:
        nonlocal cache, mask
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        output = opened.model(
            input_ids=ids.to(opened.device),
            attention_mask=mask.to(opened.device),
            past_key_values=cache,
            use_cache=True,
        )
        cache = output.past_key_values
        logits: Tensor = output.logits[:, -1]
        return logits

    return follow(reference, read)
