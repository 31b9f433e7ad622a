# SPDX-License-Identifier: Apache-2.0
"""Whatever a target counts, what is written has no more of it; latency tables from end to end."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prunec.compiler.search.latency import Latency, Times

Run = Callable[..., "subprocess.CompletedProcess[str]"]

SHORT = ["method.rounds=1", "search.budget.token_forwards=1600", "validate=null"]
MAGNITUDE = ["method={kind: magnitude}", "search=null", "calibration=null", "validate=null"]


def options(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def target(size: str, layout: str = "per_layer", multiple: int = 8) -> str:
    return f"target={{{size}, layout: {layout}, multiple_of: {multiple}}}"


@pytest.fixture(scope="session")
def table(recipe: Path, prunec: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A latency table of the tiny model, measured, and then made one of a calm machine."""
    path = tmp_path_factory.mktemp("table") / "tiny.json"
    done = prunec("profile", recipe, "--output", path, "--tokens", 16, "--repeats", 1)
    assert done.returncode == 0, done.stderr
    measured = Latency.load(path)
    calm = Times(
        0.001,
        {(queries, kv): 1e-3 * (queries + kv) for queries, kv in measured.prefill.attention},
        {width: 1e-3 + 1e-4 * width for width in measured.prefill.mlp},
    )
    replace(measured, prefill=calm).save(path)
    return path


def inspected(prunec: Run, folder: Path) -> dict[str, Any]:
    done = prunec("inspect", folder, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["weights"]
    return found


def tensor_bytes(folder: Path) -> int:
    """What a checkpoint's file holds behind its header."""
    data = (folder / "model.safetensors").read_bytes()
    return len(data) - 8 - int.from_bytes(data[:8], "little")


@pytest.mark.parametrize("layout", ["per_layer", "uniform"])
@pytest.mark.parametrize(
    ("size", "measured", "limit", "unit"),
    [
        # A neuron is 3 × 64 parameters, a KV head 2 × 16 values of bfloat16.
        ("parameters", "parameters", 90_001, 8 * 3 * 64),
        ("weight_bytes", "bytes", 180_003, 2 * 8 * 3 * 64),
        ("kv_bytes_per_token", "kv_bytes_per_token", 270, 2 * 2 * 16),
    ],
)
def test_no_more_is_written_than_was_asked_for(
    size: str,
    measured: str,
    limit: int,
    unit: int,
    layout: str,
    recipe: Path,
    prunec: Run,
    tmp_path: Path,
) -> None:
    settings = options(*MAGNITUDE, target(f"{size}: {limit}", layout))
    done = prunec("build", recipe, "--output", tmp_path, *settings)
    assert done.returncode == 0, done.stderr
    found = inspected(prunec, tmp_path) | {"bytes": tensor_bytes(tmp_path / "hf")}
    assert found[measured] <= limit
    assert limit - found[measured] <= unit * (3 if layout == "uniform" else 1)
    assert "layers alike" not in done.stderr
    if size == "kv_bytes_per_token":
        assert all(layer["ffn"] == 96 for layer in found["layers"])


@pytest.mark.parametrize(
    ("layout", "multiple", "said"),
    [
        ("per_layer", 96, "MLPs can only stay whole or go whole"),
        ("uniform", 96, "MLPs can only stay whole"),
        ("per_layer", 95, ""),
    ],
)
def test_a_plan_warns_of_a_multiple_that_leaves_mlps_nothing_between(
    layout: str, multiple: int, said: str, recipe: Path, prunec: Run
) -> None:
    size = target("sparsity: 0.2", layout, multiple)
    done = prunec("plan", recipe, *options(size, "export=[{kind: hf}]", "validate=null"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().endswith(said)
    assert ("FFN is 96 wide" in done.stderr) == bool(said)


@pytest.mark.parametrize("size", ["parameters: 90000", "kv_bytes_per_token: 192", "speedup"])
def test_a_search_stays_under_the_ceiling(
    size: str, recipe: Path, prunec: Run, table: Path, tmp_path: Path
) -> None:
    if size == "speedup":
        size = f"speedup: {{ratio: 1.6, phase: prefill, profile: {table}}}"
    settings = options(target(size), *SHORT)
    done = prunec("build", recipe, "--output", tmp_path, *settings)
    assert done.returncode == 0, done.stderr
    found = inspected(prunec, tmp_path)
    if size.startswith("speedup"):
        times = Latency.load(table).prefill
        layers = found["layers"]
        took = sum(
            times.of_attention((one["query_heads"], one["kv_heads"])) + times.of_mlp(one["ffn"])
            for one in layers
        )
        dense = times.constant + 3 * (times.of_attention((4, 2)) + times.of_mlp(96))
        assert dense / (times.constant + took) >= 1.6 * (1 - 1e-9)
        again = prunec("plan", recipe, *settings, "--json")
        moved = shutil.copy(table, tmp_path / "elsewhere.json")
        elsewhere = prunec(
            "plan", recipe, *options(target(size.replace(str(table), str(moved))), *SHORT), "--json"
        )
        assert json.loads(again.stdout) == json.loads(elsewhere.stdout)
    else:
        name, _, limit = size.partition(": ")
        assert found[name] <= int(limit)


def test_a_plan_for_a_speed_up_needs_a_config_and_a_table_alone(
    recipe: Path, prunec: Run, table: Path, tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copy(tiny_llama() / "config.json", tmp_path)
    content = json.loads(recipe.read_text("utf-8"))
    content["model"] = {"source": "nobody/has-this", "config": "config.json"}
    content["target"] = {
        "speedup": {"ratio": 1.001, "phase": "decode", "profile": "table.json"},
        "multiple_of": 8,
    }
    for text in recipe.parent.glob("*.txt"):
        shutil.copy(text, tmp_path)
    path = tmp_path / "fast.yaml"
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")

    early = prunec("plan", path)
    assert early.returncode == 2
    assert re.match(rf"{path}:\d+:\d+: target\.speedup\.profile .* cannot be read", early.stderr)
    assert "hint: measure this model" in early.stderr

    # The recipe says where its table belongs.
    measured = prunec("profile", path, "--tokens", 8, "--repeats", 1)
    assert measured.returncode == 0, measured.stderr
    assert (tmp_path / "table.json").is_file()
    assert "speed-up" in measured.stdout and "written to" in measured.stderr
    planned = prunec("plan", path)
    assert planned.returncode == 0, planned.stderr
    assert "target: decode 1.001 times as fast, at most" in planned.stdout

    far = prunec("plan", path, "--set", "target.speedup.ratio=1e6")
    assert far.returncode == 2
    assert "cannot be had: the dense model has" in far.stderr and " over " in far.stderr
    finer = prunec("plan", path, "--set", "target.multiple_of=4")
    assert "multiples of 8, and target.multiple_of is 4" in finer.stderr
    other = prunec("plan", path, "--set", "model.dtype=float32")
    assert "was measured at bfloat16, and model.dtype is float32" in other.stderr


def test_a_target_beyond_the_possible_is_told_at_its_place(recipe: Path, prunec: Run) -> None:
    done = prunec("plan", recipe, *options(target("parameters: 10")))
    assert done.returncode == 2
    assert "--set target=" in done.stderr
    assert "10 parameters cannot be had: the dense model has" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing.yaml"], "there is no such file"),
        (["no/folder/../here/"], "hub id"),
        (["quickstart", "--dtype", "int3"], '--dtype is "int3"; it must be bfloat16, float16 or'),
        (["quickstart", "--device", "moon"], "--device moon is not there"),
        (["quickstart", "--output", "gone/x.json"], "there is no folder gone"),
    ],
)
def test_what_cannot_be_profiled_is_said_in_a_sentence(
    arguments: list[str], says: str, prunec: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = prunec("profile", *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_model_folder_is_profiled_as_it_is(
    prunec: Run, tiny_llama: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = prunec(
        "profile", tiny_llama(biased=True), "--dtype", "float32", "--repeats", 2, "--tokens", 8
    )
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "latency.json").read_text("utf-8"))
    assert table["dtype"] == "float32" and table["tokens"] == 8
    assert {"hardware", "threads", "torch"} <= table["machine"].keys()
    for phase in ("prefill", "decode"):
        assert {(q, kv) for q, kv, _ in table[phase]["attention"]} == {
            (1, 1),
            (2, 1),
            (2, 2),
            (4, 2),
        }
        assert [width for width, _ in table[phase]["mlp"]] == [16, 32, 48, 64, 80, 96]
