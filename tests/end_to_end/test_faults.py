# SPDX-License-Identifier: Apache-2.0
"""Faults of the model, the clock, the store and the user: an error that names them or a right
result, never an artefact that looks finished and is wrong. The table of all faults is FAULTS.md."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunec.compiler import plan_builder
from prunec.compiler.store import Entry

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Hashes = Callable[[Path], dict[str, str]]

UNIFORM = ("--set", "method={kind: uniform}", "--set", "search=null", "--set", "validate=null")

#: Says which command makes the same again.
CARD = {"README.md": ""}

WEIGHT = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def plain(recipe: Path, prunec: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an undisturbed build without a search. Do not write to it."""
    output = tmp_path_factory.mktemp("plain")
    assert prunec("build", recipe, "--output", output, *UNIFORM).returncode == 0
    return output


@pytest.fixture
def model(tiny_llama: Callable[..., Path], tmp_path: Path) -> Path:
    """A checkpoint in shards, to be damaged."""
    return shutil.copytree(tiny_llama(shard_bytes=60_000), tmp_path / "model")


@pytest.fixture
def build(recipe: Path, prunec: Run, model: Path, tmp_path: Path) -> Run:
    """A build of the damaged checkpoint."""

    def run(*more: object) -> subprocess.CompletedProcess[str]:
        return prunec("build", recipe, "--output", tmp_path / "out", *of(model), *more)

    return run


def of(model: Path) -> tuple[str, ...]:
    return (*UNIFORM, "--set", f"model={{source: {model}, dtype: float32}}")


@pytest.fixture(scope="module")
def sound(
    recipe: Path,
    prunec: Run,
    tiny_llama: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The output of a build of the checkpoint before it is damaged. Do not write to it."""
    folder = tmp_path_factory.mktemp("sound")
    model = shutil.copytree(tiny_llama(shard_bytes=60_000), folder / "model")
    assert prunec("build", recipe, "--output", folder / "out", *of(model)).returncode == 0
    return folder / "out"


def shard_of(model: Path, name: str) -> Path:
    index = json.loads((model / "model.safetensors.index.json").read_text())
    return model / str(index["weight_map"][name])


def put(path: Path, name: str, value: float) -> None:
    tensors = load_file(path)
    tensors[name][3, 4] = value
    save_file(tensors, path, metadata={"format": "pt"})


def weights(output: Path) -> bytes:
    return (output / "hf" / "model.safetensors").read_bytes()


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x04
    path.write_bytes(data)


def test_a_shard_that_is_cut_short_is_told_before_anything_is_begun(
    build: Run, model: Path, tmp_path: Path
) -> None:
    shard = shard_of(model, WEIGHT)
    shard.write_bytes(shard.read_bytes()[:-1000])
    done = build()
    assert done.returncode == 2
    assert shard.name in done.stderr and "its header promises" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_bit_flipped_in_a_header_is_told_before_anything_is_begun(
    build: Run, model: Path, tmp_path: Path
) -> None:
    shard = shard_of(model, WEIGHT)
    flip(shard, shard.read_bytes().index(b'"shape":[') + 9)  # 9 becomes 1: still JSON
    done = build()
    assert done.returncode == 2 and WEIGHT.rpartition(".")[0].split(".")[0] in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_bit_flipped_in_a_weight_makes_another_model_of_which_nothing_is_reused(
    sound: Path, build: Run, model: Path, tmp_path: Path
) -> None:
    shutil.copytree(sound, tmp_path / "out")
    flip(shard_of(model, WEIGHT), -2)  # a finite weight of another value: no header shows it
    again = build()
    assert again.returncode == 0 and "reused" not in again.stderr
    assert weights(tmp_path / "out") != weights(sound)


def test_a_nan_in_a_weight_is_named_and_nothing_is_exported(
    build: Run, model: Path, tmp_path: Path
) -> None:
    put(shard_of(model, WEIGHT), WEIGHT, torch.nan)
    done = build()
    assert done.returncode == 3
    assert f"{WEIGHT} holds a NaN or an infinity" in done.stderr
    assert not (tmp_path / "out" / "hf").exists()
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("method", ["uniform", "tyr"])
def test_a_nan_in_an_activation_is_told_and_nothing_is_exported(
    method: str, build: Run, model: Path, tmp_path: Path
) -> None:
    put(shard_of(model, WEIGHT), WEIGHT, 3e38)  # finite itself; what is computed from it is not
    search = "search={tokens: 256, budget: {token_forwards: 1600}}" if method == "tyr" else None
    more = ("--set", f"method={{kind: {method}}}", "--set", search or "search=null")
    done = build(*more)
    assert done.returncode == 3, done.stderr
    assert "not finite" in done.stderr or "NaN" in done.stderr
    assert not (tmp_path / "out" / "hf").exists()
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_checkpoint_that_changes_while_it_is_read_ends_the_build(
    sound: Path,
    build: Run,
    model: Path,
    before_write: Callable[..., AbstractContextManager[None]],
    tmp_path: Path,
) -> None:
    shard = shard_of(model, "model.layers.2.mlp.up_proj.weight")
    before = shard.read_bytes()

    def overwrite(target: Path) -> None:
        if target.name.startswith("layer-0."):
            put(shard, "model.layers.2.mlp.up_proj.weight", 0.5)

    with before_write(overwrite):
        done = build()
    assert done.returncode == 3 and "was changed while the build was reading it" in done.stderr
    assert not (tmp_path / "out" / "hf").exists()
    shard.write_bytes(before)  # what was made of the other one must not come back
    assert build().returncode == 0
    assert weights(tmp_path / "out") == weights(sound)


def test_sigterm_ends_a_build_in_order_and_the_next_run_goes_on(
    plain: Path,
    recipe: Path,
    prunec: Run,
    hashes: Hashes,
    before_write: Callable[..., AbstractContextManager[None]],
    tmp_path: Path,
) -> None:
    def terminate(target: Path) -> None:
        if target.name.startswith("layer-1."):
            signal.raise_signal(signal.SIGTERM)

    with before_write(terminate):
        ended = prunec("build", recipe, "--output", tmp_path, *UNIFORM)
    assert ended.returncode == 128 + signal.SIGTERM
    assert ended.stderr.splitlines()[-1].startswith("terminated; the same command goes on")
    assert not (tmp_path / "manifest.json").exists()
    done = prunec("build", recipe, "--output", tmp_path, *UNIFORM)
    assert done.returncode == 0 and "calibration-tokens: reused" in done.stderr
    assert hashes(tmp_path) == hashes(plain)


def test_a_clock_that_jumps_changes_nothing(
    plain: Path, recipe: Path, prunec: Run, hashes: Hashes, tmp_path: Path
) -> None:
    draw, now = random.Random(0), time.time
    with mock.patch("time.time", lambda: now() + draw.uniform(-1e6, 1e6)):
        done = prunec("build", recipe, "--output", tmp_path, *UNIFORM)
    assert done.returncode == 0, done.stderr
    assert hashes(tmp_path) == hashes(plain)
    cost = json.loads((tmp_path / "report" / "report.json").read_text())["cost"]
    assert 0 <= cost["seconds"] < 600


def test_a_store_of_an_older_version_is_made_anew(
    plain: Path, recipe: Path, prunec: Run, hashes: Hashes, tmp_path: Path
) -> None:
    build = ("build", recipe, "--output", tmp_path, *UNIFORM)
    older = {kind: version - 1 for kind, version in plan_builder.VERSIONS.items()}
    with mock.patch.object(plan_builder, "VERSIONS", older):
        assert prunec(*build).returncode == 0
    done = prunec(*build)
    assert done.returncode == 0 and "reused" not in done.stderr
    assert hashes(tmp_path) == hashes(plain)


def test_a_record_that_this_version_does_not_write_counts_as_missing(
    plain: Path, recipe: Path, prunec: Run, hashes: Hashes, tmp_path: Path
) -> None:
    output = shutil.copytree(plain, tmp_path / "copy")
    for folder in filter(Path.is_dir, (output / ".store").iterdir()):
        record = Entry(folder).record()
        assert record is not None
        Entry(folder).save_json("finished", {"found": record["found"]})
    (output / ".store" / "notes").write_text("of nobody")
    done = prunec("build", recipe, "--output", output, *UNIFORM)
    assert done.returncode == 0 and "reused" not in done.stderr, done.stderr
    assert hashes(output) == hashes(plain)


def test_a_recipe_that_is_edited_between_runs_is_a_build_of_its_own(
    plain: Path,
    recipe: Path,
    prunec: Run,
    hashes: Hashes,
    interrupt_at_write: Callable[[int], AbstractContextManager[None]],
    tmp_path: Path,
) -> None:
    text = recipe.read_text()
    edited = recipe.with_name("edited.yaml")
    build = ("build", edited, *UNIFORM, "--output", tmp_path)
    for content in (text, text.replace('"sparsity": 0.5', '"sparsity": 0.3')):
        edited.write_text(content)
        with interrupt_at_write(5):
            assert prunec(*build).returncode == 130
    edited.write_text(text)
    assert prunec(*build).returncode == 0
    edited.unlink()
    assert hashes(tmp_path) | CARD == hashes(plain) | CARD
