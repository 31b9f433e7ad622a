# SPDX-License-Identifier: Apache-2.0
"""What an ONNX graph can express, and what writing one needs, known before a weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Literal

from prunec.compiler.model.facts import Facts
from prunec.compiler.model.rope import rope_sections, rope_type
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
    kinds = {
        "longrope" if "long_factor" in section else rope_type(section)
        for section in rope_sections(facts.config)
    }
    if branching := kinds & _BRANCHING_ROPES:
        return (
            f"rope type {min(branching)} takes other frequencies for longer texts, which a graph "
            "of fixed operations cannot; export hf or vllm"
        )
    return None
