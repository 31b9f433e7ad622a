# SPDX-License-Identifier: Apache-2.0
"""How fast transformers' `generate` runs a checkpoint folder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig

from prunec.validators.errors import ValidationError
from prunec.validators.loading import open_model


class _Clock:
    """A streamer: it is given the prompts, and then the tokens of every step, from the device."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.times: list[float] = []

    def put(self, value: object) -> None:
        self.times.append(self.now())

    def end(self) -> None:
        pass


class _Runner:
    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.now: Callable[[], float] = getattr(time, settings["clock"])
        config = folder / "config.json"
        own_code = config.is_file() and "auto_map" in json.loads(config.read_text("utf-8"))
        if settings["threads"]:
            torch.set_num_threads(settings["threads"])
        self.loaded = open_model(
            folder,
            getattr(torch, settings["dtype"]),
            trust_remote_code=own_code and settings["trust_remote_code"],
            device="cuda" if torch.cuda.is_available() else "cpu",
        )
        # The folder's own may sample, penalise, or end at a token.
        self.loaded.model.generation_config = GenerationConfig(do_sample=False, use_cache=True)
        self.vocab_size = self.loaded.vocab_size

    @torch.inference_mode()
    def generate(self, ids: NDArray[np.int64], new_tokens: int) -> tuple[float, float]:
        given = torch.from_numpy(ids).to(self.loaded.device)
        clock = _Clock(self.now)
        began = self.now()
        self.loaded.model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=1 + new_tokens,
            streamer=clock,
        )
        if len(clock.times) != 2 + new_tokens:
            raise ValidationError(
                f"{len(clock.times) - 1} tokens were generated instead of {1 + new_tokens}"
            )
        return clock.times[1] - began, clock.times[-1] - clock.times[1]


def open_runner(folder: Path, settings: Mapping[str, Any]) -> _Runner:
    """A `Runner` of a folder, on a GPU if there is one. ValidationError if it does not load."""
    return _Runner(folder, settings)
