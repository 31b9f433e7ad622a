# SPDX-License-Identifier: Apache-2.0
"""What the machine may do to a build: no network, no space, something in the way. One sentence."""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prunec.compiler import available

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def told(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence with which a build ended; at most a hint follows it."""
    assert done.returncode == 3, done.stderr
    lines = done.stderr.splitlines()
    # Steps are told in lines of their own, and the error comes after them.
    [*_, sentence] = [line for line in lines if not line.startswith("  hint: ")]
    assert lines[-1].startswith("  hint: ") or lines[-1] == sentence
    assert not sentence.startswith(("[", " "))
    return sentence


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What a full disk does to a write, without one: what is longer than `size` bytes fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (100, r"File too large: .*/\.store/model\.json$"),
        (5_000, "calibration-tokens: File too large"),
        (20_000, "resolve: File too large"),
        (120_000, "export-hf: File too large"),
    ],
)
def test_a_write_that_fails_is_told_and_made_good_by_the_next_run(
    size: int, said: str, recipe: Path, prunec: Run, tmp_path: Path
) -> None:
    uniform = ("--set", "method={kind: uniform}", "--set", "search=null")
    build = ("build", recipe, "--output", tmp_path, *uniform)
    with files_of_at_most(size):
        failed = prunec(*build)
    assert re.match(said, told(failed))
    assert not (tmp_path / "manifest.json").exists()
    assert prunec(*build).returncode == 0
    assert prunec("inspect", tmp_path).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 600 kB: enough for some steps of a build."""
    place = tmp_path / "disk"
    place.mkdir()
    if not shutil.which("mount"):
        pytest.skip("there is no mount here")
    mounting = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(place)]
    mounted = subprocess.run(mounting, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def room_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disks that others fill while a build runs: it had seen that there was enough."""
    monkeypatch.setattr(available, "disk", lambda folder: 2**40)


def test_a_disk_that_is_too_small_is_told_before_anything_is_made(
    small_disk: Path, recipe: Path, prunec: Run
) -> None:
    said = told(prunec("build", recipe, "--output", small_disk))
    assert "the build writes" in said and "has 600 KiB left" in said
    assert not list(small_disk.iterdir())


@pytest.mark.usefixtures("room_at_first")
def test_a_full_disk_is_told(small_disk: Path, recipe: Path, prunec: Run) -> None:
    assert "No space left on device" in told(prunec("build", recipe, "--output", small_disk))
    assert not (small_disk / "manifest.json").exists()


@pytest.mark.usefixtures("room_at_first")
def test_a_read_only_disk_is_told(small_disk: Path, recipe: Path, prunec: Run) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "Read-only file system" in told(prunec("build", recipe, "--output", small_disk))
    inside = prunec("build", recipe, "--output", small_disk / "new")
    assert "Read-only file system" in told(inside)


@pytest.mark.parametrize("name", ["", ".store", "report", ".lock/", "report/report.json/"])
def test_something_in_the_way_is_told(name: str, recipe: Path, prunec: Run, tmp_path: Path) -> None:
    output = tmp_path / "out"
    obstacle = output / name
    if name.endswith("/"):
        obstacle.mkdir(parents=True)
    else:
        obstacle.parent.mkdir(parents=True, exist_ok=True)
        obstacle.write_text("in the way")
    done = prunec("build", recipe, "--output", output)
    assert str(output) in told(done)


def test_an_export_never_replaces_what_prunec_did_not_write(
    recipe: Path, prunec: Run, tmp_path: Path
) -> None:
    mine = tmp_path / "hf" / "model.safetensors"
    mine.parent.mkdir()
    mine.write_text("mine")
    done = prunec("build", recipe, "--output", tmp_path)
    assert str(tmp_path / "hf") in told(done)
    assert mine.read_text() == "mine"


def test_a_model_folder_is_left_as_it_is_by_every_command(
    recipe: Path, prunec: Run, tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_llama(), tmp_path / "model")
    (model / "manifest.json").write_text("{}")
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    sweep = ("sweep", recipe, "--set", "target.sparsity=0.25,0.5")
    validate = ("validate", tiny_llama(), "--against", tiny_llama())
    for command in (("build", recipe), validate, sweep):
        assert "is a model folder" in told(prunec(*command, "--output", model))
    assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before


def test_files_that_a_user_has_edited_are_not_replaced(
    built: Path, recipe: Path, prunec: Run, tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    output = shutil.copytree(built, tmp_path / "copy")
    card = output / "hf" / "README.md"
    card.write_text("My own words.")
    other = ("--set", "target.sparsity=0.3")
    assert "README.md was edited" in told(prunec("build", recipe, "--output", output, *other))
    assert card.read_text() == "My own words."
    judged = tmp_path / "judged"
    validate = ("validate", tiny_llama(), "--against", tiny_llama(), "--output", judged)
    judged.mkdir()
    (judged / "recipe.yaml").write_text("mine: 1")
    assert "recipe.yaml" in told(prunec(*validate))
    assert (judged / "recipe.yaml").read_text() == "mine: 1"
    for option in ("--output", "--machine"):
        model = [tiny_llama()] if option == "--output" else []
        done = prunec("profile", *model, option, card)
        assert done.returncode == 2 and "is no profile that prunec wrote" in done.stderr
    assert card.read_text() == "My own words."


def test_what_lies_beside_the_output_is_left_alone(
    built: Path, recipe: Path, prunec: Run, tmp_path: Path
) -> None:
    output = shutil.copytree(built, tmp_path / "copy")
    for name in (".mine.old", ".mine.partial"):
        (output / name).mkdir()
    assert prunec("build", recipe, "--output", output).returncode == 0
    assert (output / ".mine.old").is_dir() and (output / ".mine.partial").is_dir()


def test_a_summary_that_cannot_be_written_is_told(
    built: Path, recipe: Path, prunec: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = shutil.copytree(built, tmp_path / "copy")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "nowhere" / "summary"))
    assert "nowhere" in told(prunec("build", recipe, "--output", output))


def test_a_model_of_the_hub_needs_the_hub(
    recipe: Path, prunec_process: Run, tmp_path: Path
) -> None:
    model = "model={source: nobody/nothing, dtype: bfloat16}"
    done = prunec_process("build", recipe, "--output", tmp_path, "--set", model)
    assert told(done).startswith("nobody/nothing cannot be had from the hub")


def test_a_text_of_the_hub_needs_the_hub(recipe: Path, prunec_process: Run, tmp_path: Path) -> None:
    source = "calibration.source={kind: hub, dataset: nobody/nothing}"
    # The library tries to connect for half a minute, unless it is told that this is in vain.
    done = prunec_process(
        "build",
        recipe,
        "--output",
        tmp_path,
        "--set",
        source,
        prelude="import os; os.environ['HF_HUB_OFFLINE'] = '1'",
    )
    sentence = told(done)
    assert "nobody/nothing cannot be read" in sentence or "the datasets library" in sentence
