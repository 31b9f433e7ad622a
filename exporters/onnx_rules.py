# SPDX-License-Identifier: Apache-2.0
"""What an ONNX graph can express, and what writing one needs, known before a weight is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any, Literal

from prunec.compiler.model.facts import Facts
from prunec.exporters.hf_rules import LayoutKind

Precision = Literal["float32", "float16", "int8", "int4"]

#: Bits of a quantised matrix's values.
BITS: Mapping[Precision, int] = {"int8": 8, "int4": 4}

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
#: Frequencies that depend on the length of the text: a branch, which a graph does not have.
_BRANCHING_ROPES = {"dynamic", "longrope"}


def limits(facts: Facts, layout_kind: LayoutKind) -> str | None:
    """Why no graph can be written, of this model or here at all; None if one can."""
    if missing := [package for package in _PACKAGES if find_spec(package) is None]:
        return f"needs the Python packages {', '.join(missing)}: pip install 'prunec[onnx]'"
    if branching := _BRANCHING_ROPES.intersection(_rope_types(facts.config)):
        return (
            f"rope type {min(branching)} takes other frequencies for longer texts, which a graph "
            "of fixed operations cannot; export hf or vllm"
        )
    return None


def _rope_types(config: Mapping[str, Any]) -> Iterator[str]:
    """Every `rope_type` in a config, also of single kinds of layers, and its old name."""
    for key in ("rope_parameters", "rope_scaling"):
        found = config.get(key)
        stack = [found] if isinstance(found, Mapping) else []
        while stack:
            each = stack.pop()
            yield from (each[name] for name in ("rope_type", "type") if name in each)
            stack += [inner for inner in each.values() if isinstance(inner, Mapping)]
