# SPDX-License-Identifier: Apache-2.0
"""How fast vLLM's engine runs a checkpoint folder: scheduler, paged cache, sampler and all."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import CONFIG_MAPPING, AutoConfig
from vllm import LLM, SamplingParams
from vllm.plugins import load_general_plugins

from prunec.validators.errors import ValidationError
from prunec.validators.hardware import ranks_here

#: Tokens of a cache block at most: what a text's last block may waste.
_BLOCK = 256
#: Prompts of so many tokens together are read in one step; more are read in chunks, as in serving.
_MOST_AT_ONCE = 16384
#: Room that the cache has beyond what texts need.
_MARGIN = 1.25


class _Runner:
    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.now: Callable[[], float] = getattr(time, settings["clock"])
        length = settings["prompt_tokens"] + 1 + settings["new_tokens"]
        batch = max(settings["batch_sizes"])
        remote = settings["trust_remote_code"] and _brings_code(folder)
        options = {
            "dtype": settings["dtype"],
            "trust_remote_code": remote,
            "skip_tokenizer_init": True,
            "seed": settings["seed"],
            "max_model_len": length,
            "max_num_seqs": batch,
            "max_num_batched_tokens": max(
                length, batch, min(batch * settings["prompt_tokens"], _MOST_AT_ONCE)
            ),
            # Otherwise the second time that a prompt is read it is not.
            "enable_prefix_caching": False,
            # Two engines share the machine, so neither may take what is free.
            "kv_cache_memory_bytes": _cache_bytes(folder, settings["dtype"], batch, length, remote),
            "gpu_memory_utilization": 0.4,
            # On a processor, compiling a model takes a minute.
            "enforce_eager": not torch.cuda.is_available(),
            "tensor_parallel_size": ranks_here(settings["tensor_parallel"]),
        }
        self.engine = LLM(str(folder), **{**options, **settings["engine"]}).llm_engine
        self.vocab_size = int(self.engine.model_config.get_vocab_size())
        self.asked = 0

    def generate(self, ids: NDArray[np.int64], new_tokens: int) -> tuple[float, float]:
        sampling = SamplingParams(
            max_tokens=1 + new_tokens, temperature=0, ignore_eos=True, detokenize=False
        )
        prompts = [{"prompt_token_ids": row} for row in ids.tolist()]
        generated: dict[str, int] = {}
        first: float | None = None
        early = 0
        began = self.now()
        for prompt in prompts:
            self.asked += 1
            self.engine.add_request(str(self.asked), prompt, sampling)
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                generated[output.request_id] = len(output.outputs[0].token_ids)
            if first is None and len(generated) == len(prompts):
                first = self.now()
                early = sum(generated.values()) - len(prompts)
        ended = self.now()
        due = len(prompts) * (1 + new_tokens)
        if first is None or sum(generated.values()) != due:
            raise ValidationError(
                f"{sum(generated.values())} tokens were generated instead of {due}"
            )
        # Where prompts were read in chunks, some texts went on before others had begun.
        decoded = len(prompts) * new_tokens
        return first - began, (ended - first) * decoded / max(1, decoded - early)


def open_runner(folder: Path, settings: Mapping[str, Any]) -> _Runner:
    """A `Runner` of a folder in an engine of its own, in this process."""
    return _Runner(folder, settings)


def _brings_code(folder: Path) -> bool:
    """Whether a folder has code of its own for a model that nothing installed knows."""
    load_general_plugins()
    config = json.loads((folder / "config.json").read_text("utf-8"))
    return "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING


def _cache_bytes(folder: Path, dtype: str, batch: int, length: int, remote: bool) -> int:
    """Bytes that keys and values of `batch` texts take at most, whatever shapes layers have."""
    config: Any = AutoConfig.from_pretrained(
        folder, trust_remote_code=remote, local_files_only=True
    ).get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None)
    head_dim = head_dim or config.hidden_size // config.num_attention_heads
    tokens = batch * (-(-length // _BLOCK) + 1) * _BLOCK
    values = 2 * config.num_hidden_layers * heads * head_dim * tokens
    return max(64 << 20, int(_MARGIN * values * getattr(torch, dtype).itemsize))
