# SPDX-License-Identifier: Apache-2.0
"""A checkpoint folder whose files and config agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.facts import Facts, facts_from_config
from prunec.compiler.model.headers import check_inside, read_headers, read_json
from prunec.compiler.model.layout import dense_layout, tensor_shapes

_FLOATS = ("BF16", "F16", "F32", "F64")


def facts_from_folder(folder: Path) -> Facts:
    """Facts of a checkpoint folder, its tensors' headers checked against its config.

    Raises ModelError where a file is missing or damaged or a tensor has another shape than the
    config says.
    """
    check_inside(folder, "config.json")
    facts = facts_from_config(read_json(folder / "config.json"))
    facts = replace(facts, tensors=read_headers(folder))
    _check_shapes(facts, folder)
    return facts


def _check_shapes(facts: Facts, folder: Path) -> None:
    for name, shape in tensor_shapes(facts, dense_layout(facts)).items():
        info = facts.tensors.get(name)
        if info is None:
            raise ModelError(f"{folder} has no tensor {name}, though its config calls for it")
        if info.dtype not in _FLOATS:
            raise ModelError(f"{folder}: {name} is {info.dtype}; prunec reads {', '.join(_FLOATS)}")
        if info.shape != shape:
            raise ModelError(f"{folder}: {name} has shape {info.shape}; its config says {shape}")
