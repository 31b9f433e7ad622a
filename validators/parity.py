# SPDX-License-Identifier: Apache-2.0
"""Parity: an artefact, opened by its runtime, answers what the model that it was written from does.

The reference reads every text anew in memory (`reference_answers`); the artefact is read from disk
with its runtime's own KV cache. Compared are the log-probabilities of the likeliest tokens at the
end of the prompts and at every position after them, and the greedy tokens.
"""

from __future__ import annotations

import math
import traceback
from pathlib import Path

import torch

from prunec.validators.errors import ValidationError
from prunec.validators.loading import open_tokenizer
from prunec.validators.measurements import ParityResult
from prunec.validators.parity_answers import Answers as Answers
from prunec.validators.parity_answers import ReferenceAnswers as ReferenceAnswers
from prunec.validators.parity_answers import compare
from prunec.validators.parity_answers import reference_answers as reference_answers
from prunec.validators.tokenizers import tokenizer_difference

#: Largest difference of two log-probabilities that rounding explains, by what is computed in. About
#: twice what was measured on examples/pytiny: 0.02 in float16, 0.14 in bfloat16, 0.28 of 8 bits,
#: 2.1 of 4; and more than the 2e-5 of float32, for models with larger logits. A KV head lost in one
#: layer moves 0.6 … 3.8 there, so 4 bits hide all but gross faults: divergence has to judge those.
TOLERANCES = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 2.5e-1, "int8": 5e-1, "int4": 4.0}


def measure_parity(
    artefact: str,
    folder: Path,
    reference: ReferenceAnswers,
    *,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    device: str | torch.device = "cpu",
) -> ParityResult:
    """What a folder answers in its runtime, `hf`, `onnx` or `vllm`, against the reference.

    dtype: what transformers and vLLM compute in; float32 tells most, as a checkpoint's weights
        are exact in it. An ONNX graph computes in its own.
    device: of transformers; ONNX Runtime takes the CPU, vLLM what it was built for
    The artefact's tokenizer must be the reference's too, if that has one. Whatever goes wrong is
    the result's `error`, a missing package with how to install it.
    """
    precision, error = dtype, None
    difference, agreed, compared = math.nan, 0, 0
    try:
        answers, precision = _answers(artefact, folder, reference, dtype, trust_remote_code, device)
        difference, agreed, compared = compare(reference, answers, TOLERANCES[precision])
        error = _fault(folder, reference, difference, trust_remote_code)
    except ValidationError as failure:
        error = f"{failure.message}; {failure.hint}" if failure.hint else failure.message
    except (MemoryError, torch.OutOfMemoryError):
        raise  # of the machine, not of the artefact
    except Exception as failure:  # a runtime may raise anything
        traceback.print_exc()
        error = "".join(traceback.format_exception_only(failure)).strip().splitlines()[0]
    return ParityResult(artefact, difference, TOLERANCES[precision], agreed, compared, error)


def _answers(
    artefact: str,
    folder: Path,
    reference: ReferenceAnswers,
    dtype: str,
    trust_remote_code: bool,
    device: str | torch.device,
) -> tuple[Answers, str]:
    """A runtime's answers, and what they were computed in."""
    # Imported here: each runtime is an optional package, and slow to import.
    if artefact == "hf":
        from prunec.validators.parity_hf import hf_answers

        trust = trust_remote_code
        found = hf_answers(
            folder, reference, getattr(torch, dtype), trust_remote_code=trust, device=device
        )
        return found, dtype
    if artefact == "onnx":
        from prunec.validators.parity_onnx import onnx_answers

        return onnx_answers(folder, reference)
    if artefact == "vllm":
        from prunec.validators.parity_vllm import vllm_answers

        return vllm_answers(folder, reference, dtype, trust_remote_code=trust_remote_code), dtype
    raise ValidationError(f"no runtime is known for {artefact!r}", hint="hf, onnx and vllm are")


def _fault(
    folder: Path, reference: ReferenceAnswers, difference: float, trust_remote_code: bool
) -> str | None:
    """What makes a comparison worthless, or the answers to a text others than the model's."""
    if not reference.finite:
        return "the model in memory answers NaN"
    if not math.isfinite(difference):
        return "its log-probabilities are not finite"
    if reference.tokenizer is None:
        return None
    found = open_tokenizer(folder, trust_remote_code=trust_remote_code)
    texts = [str(reference.tokenizer.decode(prompt)) for prompt in reference.prompts]
    return tokenizer_difference(reference.tokenizer, found, texts)
