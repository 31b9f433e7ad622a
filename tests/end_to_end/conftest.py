# SPDX-License-Identifier: Apache-2.0
"""The real command line on a tiny model: in this process, and where it must die in one of its own.

A run gives a CompletedProcess either way. Whatever else it did, it never shows a traceback.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

from prunec.compiler.cli import main

Run = Callable[..., "subprocess.CompletedProcess[str]"]

#: Connections are refused: as good as no network, and as fast as an answer.
NO_NETWORK = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DISABLE_TELEMETRY": "1"}

_WORDS = [
    "def",
    "self",
    "return",
    "import",
    "class",
    "None",
    "for",
    "in",
    "range",
    "if",
    "else",
    "value",
    "list",
    "other",
    "text",
]


@pytest.fixture(scope="session")
def prunec() -> Run:
    """`prunec(*arguments)`, in this process."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        argv = ["prunec", *map(str, arguments)]
        out, err = io.StringIO(), io.StringIO()
        with (
            mock.patch.object(sys, "argv", argv),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as left,
        ):
            main()
        return _checked(argv, left.value.code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def prunec_process() -> Run:
    """`prunec(*arguments)` in a process of its own and without network.

    `prelude` is Python that is run before the command, `epilogue` a statement after it.
    """

    def run(
        *arguments: object, prelude: str = "", epilogue: str = "pass"
    ) -> subprocess.CompletedProcess[str]:
        command = "from prunec.compiler.cli import main"
        code = f"{prelude}\n{command}\ntry:\n    main()\nfinally:\n    {epilogue}\n"
        argv = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ} | NO_NETWORK)
        return _checked(argv, done.returncode, done.stdout, done.stderr)

    return run


def _checked(argv: list[str], code: object, out: str, err: str) -> subprocess.CompletedProcess[str]:
    assert isinstance(code, int)
    assert "Traceback" not in out + err, err
    return subprocess.CompletedProcess(argv, code, out, err)


@pytest.fixture(scope="session")
def recipe(tiny_llama: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that asks for all there is, of a tiny model and a few kilobytes of text."""
    folder = tmp_path_factory.mktemp("recipe")
    for name in ("fit-1.txt", "fit-2.txt", "judge.txt"):
        words = random.Random(name).choices(_WORDS, k=900)
        (folder / name).write_text(" ".join(words), encoding="utf-8")
    lines = [json.dumps({"body": " ".join(_WORDS[i:] * 12)}) for i in range(6)]
    (folder / "fit.jsonl").write_text("\n".join(lines), encoding="utf-8")
    content = {
        "schema_version": 1,
        "model": {"source": str(tiny_llama()), "dtype": "bfloat16"},
        "method": {"kind": "tyr", "rounds": 2, "offspring": 4},
        "target": {"sparsity": 0.5, "layout": "per_layer", "multiple_of": 8},
        "calibration": {
            "source": {"kind": "text", "files": ["fit-*.txt"]},
            "tokens": 1024,
            "sequence_length": 32,
            "seed": 0,
        },
        "search": {"tokens": 256, "budget": {"token_forwards": 3200}},
        "export": [{"kind": "hf"}],
        "validate": {
            "perplexity": {
                "source": {"kind": "text", "files": ["judge.txt"]},
                "sequence_length": 32,
                "tokens": 512,
                "max_ratio": 1000.0,
            },
            "completion": {"prompt": "def self", "tokens": 4},
        },
    }
    path = folder / "tiny.yaml"
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def built(recipe: Path, prunec: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one uninterrupted build. Do not write to it."""
    output = tmp_path_factory.mktemp("built")
    done = prunec("build", recipe, "--output", output)
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="session")
def hashes() -> Callable[[Path], dict[str, str]]:
    """SHA-256 of every file of a build's export, by path."""

    def digest(output: Path) -> dict[str, str]:
        folder = output / "hf"
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    return digest


@pytest.fixture
def before_write() -> Callable[..., contextlib.AbstractContextManager[None]]:
    """`with before_write(action):`: what is done before each file gets its final name.

    `action` is given the path. Everything a build writes is put in place by a rename.
    """

    @contextlib.contextmanager
    def patched(action: Callable[[Path], None]) -> Iterator[None]:
        rename, replace = Path.rename, Path.replace

        def wrapped(original: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
            def call(path: Path, target: Path) -> Path:
                action(Path(target))
                return original(path, target)

            return call

        with (
            mock.patch.object(Path, "rename", wrapped(rename)),
            mock.patch.object(Path, "replace", wrapped(replace)),
        ):
            # Where the tests run in the background, a shell may have had the signal ignored.
            before = signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                yield
            finally:
                signal.signal(signal.SIGINT, before)

    return patched


@pytest.fixture
def interrupt_at_write(
    before_write: Callable[..., contextlib.AbstractContextManager[None]],
) -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """`with interrupt_at_write(n):`: Ctrl-C just before the n-th file gets its name."""

    def interrupting(number: int) -> contextlib.AbstractContextManager[None]:
        left = number

        def count(target: Path) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                signal.raise_signal(signal.SIGINT)

        return before_write(count)

    return interrupting
