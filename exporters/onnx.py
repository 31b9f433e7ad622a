# SPDX-License-Identifier: Apache-2.0
"""ONNX folders, written and read back: a graph, its weights, a tokenizer, onnxruntime-genai's file.

The weights are always in a file of their own beside the graph, whatever their size.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import Tensor
from transformers import AutoConfig

from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.facts import Facts
from prunec.compiler.model.headers import read_json
from prunec.compiler.model.layout import (
    Layout,
    is_uniform,
    prunable_parameters,
    tensor_shapes,
)
from prunec.compiler.model.special_ids import generation_config
from prunec.compiler.model.tokenizer_files import read_tokenizer
from prunec.exporters import genai_config
from prunec.exporters.artefact import Provenance, Written
from prunec.exporters.card import Card, model_card
from prunec.exporters.hf import model_config
from prunec.exporters.hf_rules import LayoutKind, carried_files
from prunec.exporters.onnx_check import check_answers
from prunec.exporters.onnx_graph import cache_names, trace
from prunec.exporters.onnx_quantize import OPERATOR
from prunec.exporters.onnx_rules import BITS, Precision
from prunec.exporters.onnx_weights import GRAPH, WEIGHTS, read_weights, write_model
from prunec.validators.manifest import CARD

_TOKENIZER = "tokenizer_config.json"

_LOADING = """\
A graph with a KV cache, {held}, for onnxruntime-genai:

```python
import onnxruntime_genai as og

model = og.Model("path/to/this/folder")
tokenizer = og.Tokenizer(model)
params = og.GeneratorParams(model)
params.set_search_options(max_length=64)
generator = og.Generator(model, params)
generator.append_tokens(tokenizer.encode("Once upon a time"))
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)))
```

ONNX Runtime alone runs it too: inputs `input_ids`, `attention_mask`, `position_ids` and
`past_key_values.N.key` and `.value` for every layer N that has attention.
"""


def export(
    destination: Path,
    source: Path,
    facts: Facts,
    layout: Layout,
    layout_kind: LayoutKind,
    tensors: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    provenance: Provenance,
    *,
    precision: Precision,
) -> None:
    """Write a pruned model into an existing, empty folder.

    `tensors` yields all of its tensors by full name; one is held at a time. They are stored at
    `precision`, whatever the recipe's `dtype`; int8 and int4 are of the matrices, and all else is
    float32 then. Raises ModelError if the layout cannot be said in `layout_kind`, the source has no
    tokenizer, or the graph and the tensors are not of one model.
    """
    if layout_kind == "uniform" and not is_uniform(layout):
        raise ModelError("layers of different shapes cannot be written as a uniform model")
    for name in carried_files(source):
        (destination / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, destination / name)
    stored = _stored(precision)
    described = model_config(facts, layout, layout_kind, stored)
    described.pop("auto_map", None)  # there is no code beside a graph
    _write_json(destination / "config.json", described)
    config = AutoConfig.from_pretrained(destination)
    write_model(trace(config, layout, stored), destination, tensors, stored, BITS.get(precision))
    _configure_genai(destination, config, described, layout)
    told = card(source, facts, layout, layout_kind, dtype, provenance, precision=precision)
    (destination / CARD).write_text(told.render(), encoding="utf-8")
    (destination / "prunec").mkdir()
    recipe = destination / "prunec" / "recipe.yaml"
    recipe.write_text(provenance.recipe_text, encoding="utf-8")
    _write_json(destination / "prunec" / "plan.json", provenance.plan)


def card(
    source: Path,
    facts: Facts,
    layout: Layout,
    layout_kind: LayoutKind,
    dtype: torch.dtype,
    provenance: Provenance,
    *,
    precision: Precision,
) -> Card:
    """What the folder tells of itself. The recipe's `dtype` is not that of what it stores."""
    quantized = precision in BITS
    held = f"matrices in {precision}, all else in float32" if quantized else f"all in {precision}"
    loading = _LOADING.format(held=held)
    size = _stored(precision).itemsize
    return model_card(source, facts, layout, size, provenance, loading, quantized=quantized)


def _stored(precision: Precision) -> torch.dtype:
    """Of what is not quantised."""
    return torch.float16 if precision == "float16" else torch.float32


def _configure_genai(
    folder: Path, config: Any, described: Mapping[str, Any], layout: Layout
) -> None:
    """Write what onnxruntime-genai reads, from what was carried into the folder.

    config, described: transformers' config of the model, and what is in its config.json
    """
    length = config.max_position_embeddings  # its class has a default
    settings = genai_config.genai_config(
        {**described, "max_position_embeddings": length},
        generation_config(folder),
        read_tokenizer(folder).special,
        layout,
        GRAPH,
    )
    _write_json(folder / genai_config.FILE, settings)
    if (path := folder / _TOKENIZER).exists():
        tokenizer = read_json(path)
        if (single := genai_config.one_chat_template(tokenizer)) != tokenizer:
            _write_json(path, single)


def verify(destination: Path, layout: Layout, facts: Facts) -> Written:
    """Read back what was written, and let ONNX Runtime answer what transformers answers.

    Raises ModelError where the graph is not valid ONNX, does not have the layout's inputs and
    tensors, or computes something else than transformers does from the tensors beside it.
    """
    path = destination / GRAPH
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"{path} is not valid ONNX: {error}") from error
    model = ir.load(path)
    for prefix, values in (
        ("past_key_values", model.graph.inputs),
        ("present", model.graph.outputs),
    ):
        found = {str(v.name): v.shape for v in values if str(v.name).startswith(prefix)}
        sizes = {name: (shape[1], shape[3]) for name, shape in found.items() if shape}
        _same(path, sizes, _cache_sizes(prefix, layout))
    weights = dict(read_weights(model))
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    _same(path, shapes, tensor_shapes(facts, layout))
    quantized = any(node.op_type == OPERATOR for node in model.graph)
    check_answers(destination, weights, quantized)
    return Written(
        parameters=sum(tensor.numel() for tensor in weights.values()),
        prunable_parameters=prunable_parameters(facts, layout),  # the tensors have its shapes
        weight_bytes=(destination / WEIGHTS).stat().st_size,
    )


def _cache_sizes(prefix: str, layout: Layout) -> dict[str, tuple[int, int]]:
    """KV heads and head width of every input or output of the cache."""
    sizes = [(spec.kv_heads, spec.head_dim) for spec in layout if spec.attention for _ in range(2)]
    return dict(zip((f"{prefix}.{name}" for name in cache_names(layout)), sizes, strict=True))


def _same(path: Path, found: Mapping[str, object], wanted: Mapping[str, object]) -> None:
    if found == wanted:
        return
    name = min(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
    there, due = found.get(name, "absent"), wanted.get(name, "absent")
    raise ModelError(f"{path}: {name} is {there}; by its layout it is {due}")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
