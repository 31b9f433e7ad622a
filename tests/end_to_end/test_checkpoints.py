# SPDX-License-Identifier: Apache-2.0
"""Checkpoints as users bring them: with tensors of other purposes, or in a repository of the hub
with the same weights in other forms."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Model = Callable[..., Path]

UNIFORM = ("--set", "method={kind: uniform}", "--set", "search=null")
COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture
def with_value_head(tiny_llama: Model, tmp_path: Path) -> Path:
    folder = shutil.copytree(tiny_llama(), tmp_path / "model")
    head = {"v_head.summary.weight": torch.ones(1, 64), "v_head.summary.bias": torch.ones(1)}
    weights = load_file(folder / "model.safetensors") | head
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_value_head_is_left_out_with_a_warning(
    with_value_head: Path, recipe: Path, prunec: Run, tmp_path: Path
) -> None:
    source = ("--set", f"model.source={with_value_head}", *UNIFORM)
    said = "no language model uses v_head.summary.bias, v_head.summary.weight; they are left out"
    planned = prunec("plan", recipe, "--json", *source)
    assert [said in warning for warning in json.loads(planned.stdout)["warnings"]] == [True]
    done = prunec("build", recipe, "--output", tmp_path / "out", *source)
    assert done.returncode == 0, done.stderr
    assert f"warning: {with_value_head}: {said}" in done.stderr
    assert "v_head.summary.weight" not in load_file(tmp_path / "out" / "hf" / "model.safetensors")


@pytest.mark.parametrize(
    "measured",
    ["validate.speed={runtimes: [hf, vllm]}", "validate.tasks={names: [x], backends: [vllm]}"],
)
def test_vllm_is_not_asked_to_open_what_it_refuses(
    measured: str, with_value_head: Path, recipe: Path, prunec: Run
) -> None:
    exports = ("--set", "export=[{kind: hf}, {kind: vllm}]")
    source = ("--set", f"model.source={with_value_head}", *UNIFORM)
    done = prunec("plan", recipe, *exports, *source, "--set", measured)
    assert done.returncode == 2
    assert "which does not open the dense model, since its files hold v_head" in done.stderr


# --- the hub, by a stand-in for its library that fetches from a folder ----------------------------


class Hub:
    """A repository in a folder. `fetched` are the names of files that were asked for, in order."""

    def __init__(self, repository: Path, cache: Path) -> None:
        self.repository, self.snapshot = repository, cache / "snapshots" / COMMIT
        self.fetched: list[str] = []

    def snapshot_download(
        self, repo: str, *, revision: str | None = None, allow_patterns: list[str]
    ) -> str:
        assert repo == "org/tiny" and revision in (None, COMMIT)
        self.snapshot.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.repository.rglob("*")):
            name = path.relative_to(self.repository).as_posix()
            if path.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                if name not in self.fetched:
                    self.fetched.append(name)
                (self.snapshot / name).parent.mkdir(exist_ok=True)
                shutil.copy(path, self.snapshot / name)
        return str(self.snapshot)


@pytest.fixture
def hub(tiny_llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A repository of shards with the same weights three times more."""
    folder = shutil.copytree(tiny_llama(shard_bytes=60_000), tmp_path / "repository")
    whole = tiny_llama() / "model.safetensors"
    for name in ("consolidated.safetensors", "original/model.safetensors", "pytorch_model.bin"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(whole, folder / name)
    made = Hub(folder, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    return made


OF_THE_HUB = ("--set", "model={source: org/tiny, dtype: float32}", *UNIFORM)


def test_of_a_repository_only_the_weights_that_its_index_names_are_fetched(
    hub: Hub, recipe: Path, prunec: Run, tmp_path: Path
) -> None:
    validate = ("--set", "validate=null")
    done = prunec("build", recipe, "--output", tmp_path / "out", *OF_THE_HUB, *validate)
    assert done.returncode == 0, done.stderr
    index = json.loads((hub.snapshot / "model.safetensors.index.json").read_text())
    weights = [name for name in hub.fetched if name.endswith((".safetensors", ".bin"))]
    assert weights == sorted({*index["weight_map"].values()}) and len(weights) > 2


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("adapter_config.json", "{}", "holds an adapter"),
        ("config.json", '{"model_type": "mamba"}', "'mamba' is not supported"),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"400": "<new>"}, "eos_token": "<new>"}',
            "a text ends with token 400",
        ),
        ("model.safetensors.index.json", '{"weight_map": {"a": "../*"}}', "outside its folder"),
    ],
)
def test_a_repository_that_is_of_no_use_is_refused_before_weights_are_fetched(
    file: str, content: str, says: str, hub: Hub, recipe: Path, prunec: Run, tmp_path: Path
) -> None:
    (hub.repository / file).write_text(content)
    done = prunec("build", recipe, "--output", tmp_path / "out", *OF_THE_HUB)
    assert done.returncode == 2 and says in done.stderr
    assert not [name for name in hub.fetched if name.endswith(".safetensors")]


def test_an_adapter_of_the_hub_is_refused_by_plan(hub: Hub, recipe: Path, prunec: Run) -> None:
    (hub.repository / "config.json").unlink()
    (hub.repository / "adapter_config.json").write_text("{}")
    done = prunec("plan", recipe, *OF_THE_HUB)
    assert done.returncode == 2 and "holds an adapter" in done.stderr
    assert hub.fetched == ["adapter_config.json"]
