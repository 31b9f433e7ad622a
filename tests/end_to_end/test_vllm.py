# SPDX-License-Identifier: Apache-2.0
"""Builds for vLLM by the command line; `tests/exporters/test_vllm_*.py` open them with vLLM."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.facts import facts_from_config
from prunec.compiler.model.layout import layout_from_plain
from prunec.exporters import vllm_decilm

Run = Callable[..., "subprocess.CompletedProcess[str]"]

FAST = ["method={kind: uniform}", "search=null", "target.sparsity=0.45"]


def _build(prunec: Run, recipe: Path, output: Path, export: str, *overrides: str) -> None:
    settings = [
        word for each in (*FAST, f"export={export}", *overrides) for word in ("--set", each)
    ]
    done = prunec("build", recipe, "--output", output, *settings)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def stock(prunec: Run, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build in vLLM's stock dialect, and beside it what transformers opens."""
    output = tmp_path_factory.mktemp("stock")
    _build(prunec, recipe, output, "[{kind: vllm, dialect: decilm}, {kind: hf}]")
    return output


def test_the_stock_dialect_is_written_inspected_and_served_without_code_for_the_model(
    stock: Path, prunec: Run
) -> None:
    config = json.loads((stock / "vllm" / "config.json").read_text())
    assert config["architectures"] == ["DeciLMForCausalLM"]
    assert [path.name for path in (stock / "vllm").glob("*.py")] == ["configuration_decilm.py"]
    card = (stock / "vllm" / "README.md").read_text()
    assert "vllm serve path/to/this/folder --trust-remote-code" in card
    assert "from_pretrained" not in card and "## Layers" in card
    report = json.loads((stock / "report" / "report.json").read_text())
    assert report["artefacts"] == {"vllm": "vllm", "hf": "hf"}
    for folder in (stock, stock / "vllm", stock / "hf"):
        assert prunec("inspect", folder).returncode == 0
    served = prunec("serve", stock, "--port", "8001")
    assert served.stdout == f"vllm serve {stock / 'vllm'} --trust-remote-code --port 8001\n"


def test_a_build_for_vllm_alone_is_measured_inspected_and_served(
    prunec: Run, recipe: Path, tmp_path: Path
) -> None:
    export = "[{kind: vllm, tensor_parallel: 2}]"
    _build(prunec, recipe, tmp_path, export, "target.multiple_of=6")
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["perplexity"]["ratio"]["value"] > 0
    for layer in report["layers"]:
        assert layer["query_heads"] % 2 == 0 and layer["ffn"] % 2 == 0
    assert prunec("inspect", tmp_path).returncode == 0
    assert prunec("serve", tmp_path).stdout.endswith("vllm --tensor-parallel-size 2\n")


def test_a_stock_artefact_that_is_not_its_layout_is_noticed(stock: Path, tmp_path: Path) -> None:
    report = json.loads((stock / "report" / "report.json").read_text())
    dense = json.loads((stock / "hf" / "config.json").read_text()) | {"model_type": "llama"}
    facts = facts_from_config(dense)
    sizes = [[s["query_heads"], s["kv_heads"], s["ffn"]] for s in report["layers"]]
    layout = layout_from_plain(sizes, facts.head_dim)
    shutil.copytree(stock / "vllm", tmp_path / "vllm")
    vllm_decilm.verify(tmp_path / "vllm", layout, facts)
    path = tmp_path / "vllm" / "config.json"
    config = json.loads(path.read_text())
    config["block_configs"][1]["ffn"]["intermediate_size"] += 8
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"its config\.json does not give the layout"):
        vllm_decilm.verify(tmp_path / "vllm", layout, facts)
    other = (*layout[:-1], replace(layout[-1], ffn=8))
    with pytest.raises(
        ModelError, match=r"layers\.2\.mlp\.down_proj\.weight is .* it is \(64, 8\)"
    ):
        vllm_decilm.verify(stock / "vllm", other, facts)
