# SPDX-License-Identifier: Apache-2.0
"""A decoder with a KV cache as an ONNX graph, traced without a weight in memory.

The graph says what transformers' own modeling code computes; only attention and its mask are put
in other words, as ONNX's Attention of opset 23, which shares KV heads and adds no copies of them.

Inputs and outputs have the names that decoders of the ONNX ecosystem have; `i` is a layer's own
number, and a layer without attention has none:

    input_ids, position_ids [batch, sequence], attention_mask [batch, total],
    past_key_values.{i}.key | value [batch, KV heads, past, head_dim]
    → logits [batch, sequence, vocabulary], present.{i}.key | value [batch, KV heads, total, …]
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import onnx_ir as ir
import onnx_ir.passes.common as ir_passes
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.layout import Layout
from prunec.exporters.onnx_decoder import ATTENTION, Cached, make_fake, weightless

OPSET = 23
#: Ends the name of a matrix that is stored as [in, out], the other way round than in a checkpoint.
TRANSPOSED = ".T"

_PREFIX = "decoder."
_STATES = ("key", "value")


def trace(config: Any, layout: Layout, dtype: torch.dtype) -> ir.Model:
    """The graph of a causal language model, whose initializers have names and shapes, but no data.

    `config` is transformers', of a model of this layout. A matrix of the checkpoint that the graph
    multiplies with is named by its name there and TRANSPOSED, any other tensor by its name alone.
    What the model computes when it is made, such as rotary frequencies, has its data.
    Raises ModelError for a model without any attention, and for one that torch cannot trace.
    """
    attended = [index for index, spec in enumerate(layout) if spec.attention]
    if not attended:
        raise ModelError("no layer has attention; a graph with a KV cache needs one that has")
    decoder = weightless(config, dtype, ATTENTION)
    computed = {name: buffer.clone() for name, buffer in decoder.named_buffers()}
    first = {parameter: name for name, parameter in decoder.named_parameters()}
    shared = {
        name: first[parameter]
        for name, parameter in decoder.named_parameters(remove_duplicate=False)
    }
    names = cache_names(layout)
    # Layers without attention have no place in the cache, and all others are of one kind in it.
    for place, index in enumerate(attended):
        decoder.base_model.layers[index].self_attn.layer_idx = place
    with _quietly(), FakeTensorMode() as fake:
        make_fake(decoder, fake)
        # Sizes of 2 and more: torch takes a size of 1 for a constant.
        past = [
            torch.zeros(2, layout[index].kv_heads, 3, layout[index].head_dim, dtype=dtype)
            for index in attended
            for _ in _STATES
        ]
        batch, sequence, cached = (torch.export.Dim(n) for n in ("batch", "sequence", "past"))
        try:
            program = torch.onnx.export(
                Cached(decoder),
                (
                    torch.zeros(2, 4, dtype=torch.long),
                    torch.ones(2, 7, dtype=torch.long),
                    torch.zeros(2, 4, dtype=torch.long),
                    past,
                ),
                dynamic_shapes=(
                    {0: batch, 1: sequence},
                    {0: batch, 1: torch.export.Dim.DYNAMIC},
                    {0: batch, 1: sequence},
                    [{0: batch, 2: cached}] * len(past),
                ),
                input_names=[
                    "input_ids",
                    "attention_mask",
                    "position_ids",
                    *(f"past_key_values.{name}" for name in names),
                ],
                output_names=["logits", *(f"present.{name}" for name in names)],
                opset_version=OPSET,
                dynamo=True,
                optimize=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise ModelError(f"torch cannot trace {type(decoder).__name__}: {reason}") from error
        assert program is not None
        weights = _set_weights_aside(program.model, shared)
        program.optimize()
    model = program.model
    _take_weights_back(model, weights, computed)
    _name_lengths(model)
    ir_passes.CommonSubexpressionEliminationPass()(model)
    ir_passes.RemoveUnusedNodesPass()(model)
    _forget_origin(model)
    return model


def cache_names(layout: Layout) -> list[str]:
    """What inputs and outputs of the KV cache are called, behind `past_key_values.`, `present.`."""
    attended = (index for index, spec in enumerate(layout) if spec.attention)
    return [f"{index}.{state}" for index in attended for state in _STATES]


def _set_weights_aside(model: ir.Model, shared: Mapping[str, str]) -> list[ir.Value]:
    """Makes inputs of all initializers without data, so that no optimisation asks for it.

    They get their names in the checkpoint; of several for one tensor, the one that `shared` gives.
    """
    initializers = model.graph.initializers
    weights = [
        value
        for value in initializers.values()
        if isinstance(getattr(value.const_value, "raw", None), FakeTensor)
    ]
    for value in weights:
        del initializers[cast("str", value.name)]
        value.const_value = None
        name = cast("str", value.name).removeprefix(_PREFIX)
        value.name = shared.get(name, name)
        model.graph.inputs.append(value)
    return weights


def _take_weights_back(
    model: ir.Model, weights: Sequence[ir.Value], computed: Mapping[str, Tensor]
) -> None:
    """Makes initializers of weights; those that are only read transposed are stored that way."""
    graph = model.graph
    kept = [value for value in graph.inputs if value not in weights]
    graph.inputs.clear()
    graph.inputs.extend(kept)
    for value in weights:
        readers = [usage.node for usage in value.uses()]
        if not readers:
            continue
        name = cast("str", value.name)
        if all(reader.op_type == "Transpose" for reader in readers):
            name, shape = name + TRANSPOSED, reversed(cast("ir.Shape", value.shape))
            stored = ir.Value(name=name, shape=ir.Shape(shape), type=value.type)
            for reader in readers:
                reader.outputs[0].replace_all_uses_with(stored)
                graph.remove(reader, safe=True)
        else:
            stored = value
        if name in computed:
            stored.const_value = ir.tensor(computed[name].numpy(), name=name)
        graph.initializers.add(stored)


def _name_lengths(model: ir.Model) -> None:
    """The length of past and new tokens together is called `total` wherever it appears."""
    mask = next(value for value in model.graph.inputs if value.name == "attention_mask")
    total = {"past + sequence", str(cast("ir.Shape", mask.shape)[1])}
    for value in _values(model.graph):
        for axis, size in enumerate(value.shape or ()):
            if str(size) in total:
                cast("ir.Shape", value.shape)[axis] = ir.SymbolicDim("total")


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _forget_origin(model: ir.Model) -> None:
    """Removes what tracing notes: stack traces, which name this machine's files."""
    model.producer_name, model.producer_version = "prunec", None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.name, model.graph.doc_string = "decoder", None
    for value in _values(model.graph):
        value.metadata_props.clear()
        value.doc_string = None
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None


@contextmanager
def _quietly() -> Iterator[None]:
    """Keeps what torch and onnxscript say meanwhile off the terminal: nothing that users need."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
