# SPDX-License-Identifier: Apache-2.0
"""The weights of an ONNX graph: always in one file beside it, written a tensor at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunec.compiler.model.errors import ModelError
from prunec.exporters.onnx_graph import TRANSPOSED
from prunec.exporters.onnx_quantize import dequantized, multiply_quantized, quantized

GRAPH = "model.onnx"
WEIGHTS = "model.onnx.data"
_ALIGNMENT = 64  # bytes: vector instructions read mapped weights where they lie


def write_model(
    model: ir.Model,
    folder: Path,
    tensors: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    bits: int | None = None,
) -> None:
    """Write a traced graph and, into a file beside it, the tensors that it lacks.

    `tensors` are the checkpoint's, by name; with `bits`, matrices are quantised to so many.
    ModelError if they are not those that the graph needs.
    """
    lacking = {
        name: value for name, value in model.graph.initializers.items() if value.const_value is None
    }
    with (folder / WEIGHTS).open("wb") as file:
        for name, tensor in tensors:
            value = lacking.pop(name, None) or lacking.pop(name + TRANSPOSED, None)
            if value is None:
                raise ModelError(f"the ONNX graph has no place for {name}")
            matrix = cast("str", value.name).endswith(TRANSPOSED)
            stored = tensor.detach().to("cpu", dtype)
            array = (stored.T if matrix else stored).contiguous().numpy()
            if list(array.shape) != list(cast("ir.Shape", value.shape)):
                raise ModelError(f"{name} is {array.shape}; the ONNX graph has {value.shape}")
            if matrix and bits:
                held = [_append(file, part, folder) for part in quantized(array, bits)]
                multiply_quantized(model, value, *held)
            else:
                value.const_value = _append(file, array, folder)
    if lacking:
        raise ModelError(f"the ONNX graph needs {min(lacking)}, which the model does not have")
    ir.save(model, folder / GRAPH)


def _append(file: BinaryIO, array: NDArray[Any], folder: Path) -> ir.ExternalTensor:
    file.write(b"\0" * (-file.tell() % _ALIGNMENT))
    offset = file.tell()
    file.write(array.data)
    kind = ir.DataType.from_numpy(array.dtype)
    return ir.ExternalTensor(
        WEIGHTS,
        offset,
        array.nbytes,
        kind,
        shape=ir.Shape(array.shape),
        name="",
        base_dir=folder,
    )


def _mapped(tensor: ir.ExternalTensor) -> NDArray[Any]:
    # Copy on write: torch warns of arrays that cannot be written.
    shape = tuple(int(size) for size in tensor.shape)
    return np.memmap(tensor.path, tensor.dtype.numpy(), "c", tensor.offset or 0, shape)


def read_weights(model: ir.Model) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a checkpoint that lie beside a graph, by their names there.

    They are mapped, not read, except for those that have to be dequantised.
    """
    for name, value in model.graph.initializers.items():
        if not isinstance(value.const_value, ir.ExternalTensor) or name.endswith(".scales"):
            continue
        array: NDArray[Any] = _mapped(value.const_value)
        if name.endswith(".codes"):
            name = name.removesuffix(".codes")
            product = value.uses()[0].node
            scales = cast("ir.Value", product.inputs[2]).const_value
            assert scales is not None
            array = dequantized(array, scales.numpy(), product.attributes["K"].as_int())
        tensor = torch.from_numpy(array)
        yield name.removesuffix(TRANSPOSED), tensor.T if name.endswith(TRANSPOSED) else tensor
