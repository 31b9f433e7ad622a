# SPDX-License-Identifier: Apache-2.0
"""Several workers make what one makes, and one that dies takes nothing with it but time."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Hashes = Callable[[Path], dict[str, str]]


@pytest.fixture(scope="module")
def long_recipe(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe on so much text that it takes two forward passes."""
    content = json.loads(recipe.read_text(encoding="utf-8"))
    folder = tmp_path_factory.mktemp("long")
    for name in ("fit-1.txt", "judge.txt"):
        words = random.Random(name).choices(["def", "self", "return", "import"], k=12_000)
        (folder / name).write_text(" ".join(words), encoding="utf-8")
    content["calibration"] |= {"tokens": 12_288}
    content["method"] |= {"rounds": 1}
    path = folder / "long.yaml"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def alone(long_recipe: Path, prunec: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of it. Do not write to it."""
    output = tmp_path_factory.mktemp("alone")
    assert prunec("build", long_recipe, "--output", output).returncode == 0
    return output


def _start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "prunec.compiler", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)


def _building_a_layer(recipe: Path, output: Path) -> subprocess.Popen[str]:
    """A build by two workers that has just solved another layer of the supernet."""
    layers = ".store/*/layer-*.safetensors"
    solved = set(output.glob(layers))
    building = _start("build", recipe, "--output", output, "--workers", 2)
    while set(output.glob(layers)) <= solved:
        assert building.poll() is None, building.communicate()
        time.sleep(0.01)
    return building


def _worker(number: int, launcher: int) -> int:
    """The process of a worker that a launcher has started."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (process / "environ").read_bytes().split(b"\0")
        except OSError:  # gone by now
            continue
        if parent == launcher and f"RANK={number}".encode() in environment:
            return int(process.name)
    raise AssertionError(f"there is no worker {number}")


def _searched(output: Path) -> list[Any]:
    """What the search had found by then, generation by generation: divergences to the last bit."""
    sealed = [json.loads(path.read_text()) for path in output.glob(".store/*/finished.json")]
    found = [json.loads(record["value"])["found"] for record in sealed]
    [history] = [summary["history"] for summary in found if "history" in summary]
    assert len(history) > 1
    return list(history)


def test_a_killed_worker_ends_the_build_and_the_rest_is_made_by_any_number_of_them(
    long_recipe: Path, alone: Path, hashes: Hashes, tmp_path: Path
) -> None:
    building = _building_a_layer(long_recipe, tmp_path)
    workers = [_worker(number, building.pid) for number in (0, 1)]
    building.kill()
    building.communicate(timeout=60)
    while any(Path(f"/proc/{worker}").exists() for worker in workers):  # they end with it
        time.sleep(0.1)

    building = _building_a_layer(long_recipe, tmp_path)
    os.kill(_worker(1, building.pid), signal.SIGKILL)
    out, err = building.communicate(timeout=60)
    assert building.returncode == 3, err
    assert "worker 1 was killed by SIGKILL" in err
    assert "run the same command again" in err
    assert "Traceback" not in out + err
    assert not (tmp_path / "manifest.json").exists()

    # More workers than forward passes: one has nothing to run.
    building = _start("build", long_recipe, "--output", tmp_path, "--workers", 3)
    out, err = building.communicate(timeout=300)
    assert building.returncode == 0, err
    assert hashes(tmp_path) == hashes(alone)
    assert _searched(tmp_path) == _searched(alone)
