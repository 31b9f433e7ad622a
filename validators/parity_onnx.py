# SPDX-License-Identifier: Apache-2.0
"""What ONNX Runtime answers from a folder's graph, a token at a time with its KV cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunec.validators.errors import ValidationError
from prunec.validators.parity_answers import Answers, ReferenceAnswers, follow

GRAPH = "model.onnx"
_INSTALL = "pip install 'prunec[onnx]'"
_PAST, _PRESENT = "past_key_values", "present"
_KINDS = {"tensor(float)": "float32", "tensor(float16)": "float16"}
_QUANTIZED = "MatMulNBits"


def require_onnxruntime() -> Any:
    """The package. ValidationError, with how to install it, if it is not there."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ValidationError("onnxruntime is not installed", hint=_INSTALL) from error
    return onnxruntime


class Session:
    """A decoder graph in ONNX Runtime on the CPU, and the KV cache of the texts that it reads.

    ValidationError if onnxruntime is not installed, or does not open the folder's graph.
    """

    def __init__(self, folder: Path) -> None:
        onnxruntime = require_onnxruntime()
        if not (folder / GRAPH).is_file():
            raise ValidationError(f"{folder} has no {GRAPH}")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._runtime = onnxruntime.InferenceSession(
                folder / GRAPH, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions have no other base
            reason = str(error).strip().partition("\n")[0]
            raise ValidationError(
                f"ONNX Runtime does not open {folder / GRAPH}: {reason}"
            ) from error
        self._outputs = [value.name for value in self._runtime.get_outputs()]
        #: What logits are computed in.
        self.dtype = _KINDS.get(self._runtime.get_outputs()[0].type, "float32")
        self._cache: dict[str, NDArray[Any]] = {}
        self._read = 0

    def read(self, ids: NDArray[np.int64]) -> NDArray[Any]:
        """[n, more] tokens after those that were read → [n, vocabulary] logits of the next one."""
        if not self._read:
            for value in self._runtime.get_inputs():
                if value.name.startswith(_PAST):
                    _, heads, _, head_dim = value.shape
                    kind = _KINDS.get(value.type, "float32")
                    self._cache[value.name] = np.zeros((len(ids), heads, 0, head_dim), kind)
        positions = np.arange(self._read, self._read + ids.shape[1])
        self._read += ids.shape[1]
        given = {
            "input_ids": ids,
            "attention_mask": np.ones((len(ids), self._read), np.int64),
            "position_ids": np.broadcast_to(positions, ids.shape).copy(),
        }
        found = dict(zip(self._outputs, self._runtime.run(None, given | self._cache), strict=True))
        self._cache = {name: found[name.replace(_PAST, _PRESENT)] for name in self._cache}
        logits: NDArray[Any] = found["logits"][:, -1]
        return logits


def onnx_answers(folder: Path, reference: ReferenceAnswers) -> tuple[Answers, str]:
    """The answers, and the precision of the graph: float32, float16, int8 or int4.

    ValidationError if the graph does not open or run, or a package is missing.
    """
    session = Session(folder)

    def read(ids: Tensor) -> Tensor:
        return torch.from_numpy(session.read(ids.numpy()))

    try:
        answers = follow(reference, read)
    except Exception as error:  # as above
        reason = str(error).strip().partition("\n")[0]
        raise ValidationError(f"ONNX Runtime does not run {folder / GRAPH}: {reason}") from error
    return answers, _precision(folder, session.dtype)


def _precision(folder: Path, dtype: str) -> str:
    """What the fewest bits of a quantised matrix say, if there is one."""
    try:
        import onnx
    except ImportError as error:
        raise ValidationError("onnx is not installed", hint=_INSTALL) from error
    graph = onnx.load(folder / GRAPH, load_external_data=False).graph
    bits = [
        attribute.i
        for node in graph.node
        if node.op_type == _QUANTIZED
        for attribute in node.attribute
        if attribute.name == "bits"
    ]
    return f"int{min(bits)}" if bits else dtype
