# SPDX-License-Identifier: Apache-2.0
"""How fast ONNX Runtime runs a graph with a KV cache, on the processor."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from prunec.validators.errors import ValidationError

GRAPH = "model.onnx"
_PAST, _PRESENT = "past_key_values.", "present."
_KINDS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class _Runner:
    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        if not (folder / GRAPH).is_file():
            raise ValidationError(f"{folder} holds no {GRAPH}")
        self.now: Callable[[], float] = getattr(time, settings["clock"])
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = settings["threads"] or 0
        # Threads that wait would take the cores of the model whose turn it is.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            folder / GRAPH, options, providers=["CPUExecutionProvider"]
        )
        inputs = self.session.get_inputs()
        self.inputs = {value.name for value in inputs}
        self.cached = [value for value in inputs if value.name.startswith(_PAST)]
        self.states = [value.name.replace(_PAST, _PRESENT) for value in self.cached]
        outputs = {value.name: value for value in self.session.get_outputs()}
        if not self.cached or not {"logits", *self.states} <= set(outputs):
            raise ValidationError(f"{folder / GRAPH} has no inputs and outputs for a KV cache")
        size = outputs["logits"].shape[-1]
        if not isinstance(size, int):
            raise ValidationError(f"{folder / GRAPH} does not say how large its vocabulary is")
        self.vocab_size = size

    def generate(self, ids: NDArray[np.int64], new_tokens: int) -> tuple[float, float]:
        past = [self._empty(value, len(ids)) for value in self.cached]
        began = self.now()
        following, past = self._step(ids, 0, past)
        first = self.now()
        for length in range(ids.shape[1], ids.shape[1] + new_tokens):
            following, past = self._step(following, length, past)
        return first - began, self.now() - first

    def _step(
        self, ids: NDArray[np.int64], read: int, past: list[Any]
    ) -> tuple[NDArray[np.int64], list[Any]]:
        """Read ids [batch, new] behind `read` others: the next ids [batch, 1], and the cache."""
        batch, new = ids.shape
        given = {
            "input_ids": ids,
            "attention_mask": np.ones((batch, read + new), np.int64),
            "position_ids": np.tile(np.arange(read, read + new), (batch, 1)),
        }
        values = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(array)
            for name, array in given.items()
            if name in self.inputs
        }
        cache = {value.name: state for value, state in zip(self.cached, past, strict=True)}
        logits, *present = self.session.run_with_ort_values(
            ["logits", *self.states], values | cache
        )
        following: NDArray[np.int64] = logits.numpy()[:, -1:].argmax(-1)
        return following, present

    @staticmethod
    def _empty(value: Any, batch: int) -> Any:
        shape = (batch, value.shape[1], 0, value.shape[3])
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, _KINDS[value.type]))


def open_runner(folder: Path, settings: Mapping[str, Any]) -> _Runner:
    """A `Runner` of a folder's graph; its precision is the graph's. ValidationError if it has none
    with a KV cache."""
    return _Runner(folder, settings)
