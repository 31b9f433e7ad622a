# SPDX-License-Identifier: Apache-2.0
"""What artefacts take on disk and in memory, against what their weights must take."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prunec.validators.errors import ValidationError
from prunec.validators.footprint import file_bytes, measure_footprint, resident_bytes

MakeModel = Callable[..., Path]

MIB = 1 << 20
#: Modules, kernels and the answer itself, beside the weights.
AROUND = 24 * MIB
HOMEMADE = """
from transformers import LlamaConfig, LlamaForCausalLM

class Config(LlamaConfig):
    model_type = "homemade"

class Model(LlamaForCausalLM):
    config_class = Config
"""


def test_file_bytes_are_those_of_every_file_but_hidden_ones(tmp_path: Path) -> None:
    for name, size in (("a.bin", 10), ("prunec/b", 5), (".cache/c", 100), (".d", 100)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    (tmp_path / "link").symlink_to(tmp_path / "a.bin")  # as in the hub's cache of snapshots
    assert file_bytes(tmp_path) == 25
    with pytest.raises(ValidationError, match="is not a folder"):
        file_bytes(tmp_path / "absent")


def give_code(folder: Path) -> Path:
    """Let a folder be loaded by a modeling file of its own, as per-layer models are."""
    (folder / "homemade.py").write_text(HOMEMADE)
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "homemade.Config", "AutoModelForCausalLM": "homemade.Model"}
    config |= {"model_type": "homemade", "auto_map": code}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_model_takes_its_weights_and_little_more(tiny_llama: MakeModel, tmp_path: Path) -> None:
    size = {"layers": 2, "hidden": 256, "query_heads": 8, "head_dim": 32}
    large = tiny_llama(ffn=8192, **size)
    small = give_code(shutil.copytree(tiny_llama(ffn=1024, **size), tmp_path / "small"))
    found = measure_footprint("hf", small, large, trust_remote_code=True)
    assert found.file_bytes == file_bytes(small) and found.dense_file_bytes == file_bytes(large)
    for folder, resident in ((small, found.resident_bytes), (large, found.dense_resident_bytes)):
        weights = (folder / "model.safetensors").stat().st_size
        assert resident is not None and 0.95 * weights < resident < weights + AROUND


def test_an_onnx_graph_takes_its_weights_and_little_more(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the packages of prunec[onnx]")
    onnx = pytest.importorskip("onnx", reason="needs the packages of prunec[onnx]")
    helper, kind = onnx.helper, onnx.TensorProto
    table = np.random.default_rng(0).standard_normal((32, MIB // 4), np.float32)  # 32 MiB
    shape = ["batch", "sequence"]
    names = ("input_ids", "attention_mask", "position_ids")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["logits"])],
        "lookup",
        [helper.make_tensor_value_info(name, kind.INT64, shape) for name in names],
        [helper.make_tensor_value_info("logits", kind.FLOAT, [*shape, table.shape[1]])],
        [onnx.numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    found = resident_bytes("onnx", tmp_path)
    assert found.bytes is not None
    assert 0.95 * table.nbytes < found.bytes < table.nbytes + 8 * MIB + AROUND  # logits of 8 tokens


def test_what_is_not_measured_says_why(llama: Path) -> None:
    vllm = resident_bytes("vllm", llama)
    assert vllm.bytes is None and vllm.reason is not None and "reserves memory" in vllm.reason
    refused = resident_bytes("hf", give_code(llama))  # its code is not trusted
    assert refused.bytes is None and refused.reason is not None
    assert "trust_remote_code" in refused.reason
