# SPDX-License-Identifier: Apache-2.0
"""Run by `test_vllm_engine.py` in a process of its own: vLLM opens folders and continues prompts.

    python vllm_answers.py REQUESTS.json ANSWERS.json

A request is a folder, options of `LLM` and prompts of tokens, perhaps with an adapter; an answer is
what was generated for it, greedily.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

TOKENS = 24

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Tokens, log-probabilities of the likeliest ones, and what the engine made of the model."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    options = {"dtype": "float32", "max_model_len": 256, "num_gpu_blocks_override": 64}
    try:
        llm = LLM(request["folder"], **{**options, "enforce_eager": True, **request["options"]})
    except ValueError as error:
        return {"refused": str(error)}
    adapter = LoRARequest("adapter", 1, request["adapter"]) if "adapter" in request else None
    sampling = SamplingParams(max_tokens=TOKENS, temperature=0, logprobs=5, ignore_eos=True)
    prompts = [{"prompt_token_ids": prompt} for prompt in request["prompts"]]
    for _ in range(request.get("rounds", 1)):
        outputs = llm.generate(prompts, sampling, use_tqdm=False, lora_request=adapter)
    engine = llm.llm_engine.engine_core.engine_core
    cache = engine.scheduler.kv_cache_config
    return {
        "architecture": llm.llm_engine.vllm_config.model_config.architecture,
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
        "logprobs": [
            [
                {token: found.logprob for token, found in step.items()}
                for step in output.outputs[0].logprobs
            ]
            for output in outputs
        ],
        "cached": [output.num_cached_tokens for output in outputs],
        "kv_bytes_per_block": max(t.size for t in cache.kv_cache_tensors) // cache.num_blocks,
        "block_size": llm.llm_engine.vllm_config.cache_config.block_size,
    }


def main() -> None:
    requests = json.loads(Path(sys.argv[1]).read_text())
    answers = {}
    for name, request in requests.items():
        answers[name] = answer(request)
        gc.collect()
    Path(sys.argv[2]).write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
