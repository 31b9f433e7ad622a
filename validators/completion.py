# SPDX-License-Identifier: Apache-2.0
"""A greedy completion: what a checkpoint folder says next."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from prunec.validators.errors import ValidationError
from prunec.validators.loading import LoadedModel, open_model


def complete(
    folder: Path,
    prompt: str,
    tokens: int,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    *,
    device: str | torch.device = "cpu",
) -> str:
    """`complete_with` a checkpoint folder, loaded for this one completion."""
    model = open_model(folder, dtype, trust_remote_code=trust_remote_code, device=device)
    return complete_with(model, prompt, tokens)


@torch.inference_mode()
def complete_with(model: LoadedModel, prompt: str, tokens: int) -> str:
    """The prompt and up to `tokens` greedy tokens after it; fewer if the model ends its text.

    A model whose weights stay on disk is read anew for every token.

    ValidationError if the prompt is no token at all or the folder's tokenizer does not load.
    """
    tokenizer = model.tokenizer()
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    length = inputs["input_ids"].shape[1]
    if length == 0:
        raise ValidationError("an empty prompt cannot be completed")
    with warnings.catch_warnings():
        # Of a model whose weights stay on disk: that it is on no device.
        warnings.filterwarnings("ignore", message="You are calling .generate")
        # Spelled out, so that no generation_config.json of either folder colours the comparison.
        output = model.model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=tokens,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=_padding(tokenizer),
        )[0]
    # Decoded together: the first new token may carry the space that joins it to the prompt.
    known = tokenizer.decode(output[:length], skip_special_tokens=True)
    text = tokenizer.decode(output, skip_special_tokens=True)
    return prompt + str(text[len(known) :]) if text.startswith(known) else str(text)


def _padding(tokenizer: object) -> int:
    # One sequence is never padded, but generate() warns without an id.
    for name in ("pad_token_id", "eos_token_id"):
        if (token := getattr(tokenizer, name, None)) is not None:
            return int(token)
    return 0
