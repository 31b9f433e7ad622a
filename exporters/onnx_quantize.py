# SPDX-License-Identifier: Apache-2.0
"""Matrices of 8 or 4 bits a value: quantised by ONNX Runtime's own tool, multiplied by its kernel.

Weights only, symmetric, in blocks of BLOCK inputs with one scale each. Embeddings, norms and
biases keep their precision, and so does a head that is tied to the embeddings.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

BLOCK = 32
DOMAIN = "com.microsoft"
OPERATOR = "MatMulNBits"
#: Activations may be rounded to 8 bits inside a product, in blocks of the same size.
_ACCURACY_LEVEL = 4


def quantized(matrix: NDArray[Any], bits: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """[in, out] → codes [out, blocks, bytes of a block] and scales [out, blocks]."""
    codes, scales, _ = _quantizer(bits).qbits_block_quant(matrix)
    return codes, scales


@cache
def _quantizer(bits: int) -> Any:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    from onnxruntime.quantization import matmul_nbits_quantizer as tool

    root.handlers[:] = handlers  # the import lets every library in the process log to stderr
    root.setLevel(level)
    config = tool.DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=True, bits=bits)
    return tool.DefaultWeightOnlyQuantizer(config)


def dequantized(
    codes: NDArray[np.uint8], scales: NDArray[np.float32], inputs: int
) -> NDArray[np.float32]:
    """The [in, out] matrix that codes and scales stand for: the inverse of `quantized`."""
    bits = codes.shape[-1] * 8 // BLOCK
    if bits == 4:  # the lower half of a byte comes first
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:-1], BLOCK)
    values = (codes.astype(np.float32) - 2 ** (bits - 1)) * scales.reshape(*codes.shape[:2], 1)
    matrix: NDArray[np.float32] = values.reshape(len(values), -1)[:, :inputs].T
    return matrix


def multiply_quantized(
    model: ir.Model, matrix: ir.Value, codes: ir.TensorProtocol, scales: ir.TensorProtocol
) -> None:
    """Let a graph multiply with codes and scales wherever it multiplies with a matrix [in, out]."""
    graph, name = model.graph, cast("str", matrix.name)
    inputs, outputs = cast("ir.Shape", matrix.shape).numpy()
    held = []
    for ending, tensor in (("codes", codes), ("scales", scales)):
        value = ir.Value(
            name=f"{name}.{ending}",
            shape=ir.Shape(tensor.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        graph.initializers.add(value)
        held.append(value)
    attributes = {
        "K": inputs,
        "N": outputs,
        "bits": codes.shape[-1] * 8 // BLOCK,
        "block_size": BLOCK,
        "accuracy_level": _ACCURACY_LEVEL,
    }
    for node in [usage.node for usage in matrix.uses()]:
        product = ir.node(OPERATOR, [node.inputs[0], *held], attributes, domain=DOMAIN)
        product.name = node.name
        old, new = node.outputs[0], product.outputs[0]
        new.shape, new.type = old.shape, old.type
        graph.insert_before(node, product)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.name, old.name = old.name, None
        graph.remove(node, safe=True)
    del graph.initializers[name]
    model.opset_imports[DOMAIN] = 1
