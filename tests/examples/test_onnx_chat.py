# SPDX-License-Identifier: Apache-2.0
"""The example that generates text with ONNX Runtime, from a build's ONNX folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[2]
RECIPE = """\
schema_version: 1
model: {{source: {source}, dtype: float32}}
method: {{kind: magnitude}}
target: {{sparsity: 0.5, layout: uniform, multiple_of: 8}}
export: [{{kind: hf}}, {{kind: onnx}}]
"""


def test_onnx_runtime_alone_continues_a_text_as_transformers_does(
    tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="needs the packages of prunec[onnx]")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(source=tiny_llama(layers=2)))
    built = subprocess.run(
        [sys.executable, "-m", "prunec.compiler", "build", recipe, "--output", tmp_path / "built"],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    prompt = "def self return"
    said = subprocess.run(
        [sys.executable, ROOT / "examples/onnx_chat.py", tmp_path / "built/onnx", prompt, "24"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "built/hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "built/hf", dtype=torch.float32)
    given = tokenizer(prompt, return_tensors="pt")
    written = model.generate(**given, max_new_tokens=24, do_sample=False)
    expected = tokenizer.decode(written[0], skip_special_tokens=True)
    assert len(written[0]) > len(given["input_ids"][0]) + 8, "an end so early shows little"
    assert said.rstrip("\n") == expected.rstrip("\n").rstrip("\ufffd")
