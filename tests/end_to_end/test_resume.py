# SPDX-License-Identifier: Apache-2.0
"""A build that is killed, interrupted or damaged anywhere ends with the same bytes all the same."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Hashes = Callable[[Path], dict[str, str]]

#: Put before a command: the process kills itself just before the n-th file whose path matches
#: gets its name, which leaves the unnamed file behind as a real kill does.
DIE = """
import fnmatch, os, signal
from pathlib import Path
rename, left = Path.rename, {number}
def deadly(path, target):
    global left
    left -= fnmatch.fnmatch(str(target), {pattern!r})
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, target)
Path.rename = Path.replace = deadly
"""

#: Put before a command: Ctrl-C meets an import that swallows it, as those of some libraries do.
INTERRUPT_AN_IMPORT = """
import contextlib, signal, sys
class Finder:
    def find_spec(self, name, path, target=None):
        if name == "torch":
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""


def test_kills_leave_no_trace(
    built: Path, recipe: Path, prunec: Run, prunec_process: Run, hashes: Hashes, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    moments = [
        ("*/layer-1.*.safetensors", 1),  # in the supernet, between two files of one layer
        ("*/state.json", 3),  # in the search, after two generations
        ("*/hf", 1),  # the export is whole, and not yet in its place
        ("*/manifest.json", 1),  # the last thing of all
    ]
    for pattern, number in moments:
        killed = prunec_process(
            "build", recipe, "--output", output, prelude=DIE.format(number=number, pattern=pattern)
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not (output / "manifest.json").exists()
    done = prunec("build", recipe, "--output", output)
    assert done.returncode == 0, done.stderr
    assert hashes(output) == hashes(built)
    assert prunec("inspect", output).returncode == 0
    assert not list(output.rglob("*.partial")) and not list(output.rglob(".hf*"))


def test_a_build_may_be_interrupted_again_and_again(
    built: Path,
    recipe: Path,
    prunec: Run,
    hashes: Hashes,
    interrupt_at_write: Callable[[int], AbstractContextManager[None]],
    tmp_path: Path,
) -> None:
    for interruptions in range(100):  # noqa: B007 - looked at below
        with interrupt_at_write(5):
            done = prunec("build", recipe, "--output", tmp_path)
        if done.returncode != 130:
            break
        assert done.stderr.splitlines()[-1].startswith("interrupted")
        assert done.stderr.count("interrupted") == 1 and done.stdout == ""
        assert not (tmp_path / "manifest.json").exists()
    assert done.returncode == 0, done.stderr
    assert interruptions > 5
    assert hashes(tmp_path) == hashes(built)


def test_an_interruption_is_obeyed_while_libraries_are_imported(
    recipe: Path, prunec_process: Run, tmp_path: Path
) -> None:
    done = prunec_process(
        "build", recipe, "--output", tmp_path / "out", prelude=INTERRUPT_AN_IMPORT
    )
    assert done.returncode == 130
    assert done.stderr.startswith("interrupted") and done.stderr.count("\n") == 1


def test_a_kill_while_a_finished_build_is_replaced_leaves_no_false_manifest(
    built: Path,
    recipe: Path,
    prunec: Run,
    hashes: Hashes,
    before_write: Callable[..., AbstractContextManager[None]],
    tmp_path: Path,
) -> None:
    output = shutil.copytree(built, tmp_path / "copy")

    def interrupt(target: Path) -> None:
        if target.name == "hf":  # the old export has been set aside, the new one is not there
            signal.raise_signal(signal.SIGINT)

    other = ("build", recipe, "--output", output, "--set", "target.sparsity=0.3")
    with before_write(interrupt):
        assert prunec(*other).returncode == 130
    assert not (output / "manifest.json").exists()
    assert prunec("build", recipe, "--output", output).returncode == 0
    assert hashes(output) == hashes(built)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("files", "damage"),
    [
        ("*.safetensors", flip_a_bit),
        ("*.safetensors", truncate),
        ("*.safetensors", Path.unlink),
        ("*.json", flip_a_bit),
        ("*.json", truncate),
    ],
)
def test_a_damaged_store_is_made_again(
    files: str,
    damage: Callable[[Path], None],
    built: Path,
    recipe: Path,
    prunec: Run,
    hashes: Hashes,
    tmp_path: Path,
) -> None:
    output = shutil.copytree(built, tmp_path / "copy")
    damaged = list((output / ".store").rglob(files))
    assert len(damaged) > 10
    for path in damaged:
        damage(path)
    shutil.rmtree(output / "hf")  # so that the layers are read again
    done = prunec("build", recipe, "--output", output)
    assert done.returncode == 0, done.stderr
    assert hashes(output) == hashes(built)


def test_a_damaged_export_is_written_again(
    built: Path, recipe: Path, prunec: Run, hashes: Hashes, tmp_path: Path
) -> None:
    output = shutil.copytree(built, tmp_path / "copy")
    flip_a_bit(output / "hf" / "model.safetensors")
    assert prunec("build", recipe, "--output", output).returncode == 0
    assert hashes(output) == hashes(built)


@pytest.mark.parametrize("fresh", [[], ["--fresh"]])
def test_a_second_build_into_one_output_is_turned_away(
    fresh: list[str],
    built: Path,
    recipe: Path,
    prunec: Run,
    hashes: Hashes,
    before_write: Callable[..., AbstractContextManager[None]],
    tmp_path: Path,
) -> None:
    seconds: list[subprocess.CompletedProcess[str]] = []

    def start_another(target: Path) -> None:
        if target.name.startswith("layer-1.") and not seconds:
            seconds.append(prunec("build", recipe, "--output", tmp_path, *fresh))

    with before_write(start_another):
        first = prunec("build", recipe, "--output", tmp_path)
    [second] = seconds
    assert second.returncode == 3
    assert "another build is writing to" in second.stderr
    assert first.returncode == 0, first.stderr
    assert hashes(tmp_path) == hashes(built)
