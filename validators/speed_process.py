# SPDX-License-Identifier: Apache-2.0
"""The driving end of `speed_worker.py`: starts the process, asks it, and ends it in any case."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from prunec.validators.errors import ValidationError

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # A worker that waits must leave the cores to the one whose turn it is.
    "OMP_WAIT_POLICY": "PASSIVE",
    "KMP_BLOCKTIME": "0",
    # The engine in the worker itself, so that it ends with it, on whatever core is free.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}


class Worker:
    """A `speed_worker` process. As a context manager it is ended on the way out."""

    def __init__(self, runtime: str, folder: Path, *, threads: int | None, timeout: float) -> None:
        """Nothing is loaded yet. `timeout`: seconds that any answer may take."""
        self._folder, self._timeout = folder, timeout
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        self._received = b""
        self._failure: ValidationError | None = None
        count = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "prunec.validators.speed_worker", runtime, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=os.environ | ENVIRONMENT | (count if threads else {}),
            # A group of its own, to be ended as one: runtimes may start processes too.
            start_new_session=True,
        )

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request; ValidationError if the worker answers with an error, does not
        answer in time, or has ended. After the last two it answers nothing any more."""
        if self._failure is not None:
            raise self._failure
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._fail(self._epitaph()) from None
        reply: dict[str, Any] = json.loads(self._line())
        if "error" in reply:
            raise ValidationError(str(reply["error"]))
        return reply

    def close(self) -> None:
        """End the process and whatever it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # none is left
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + self._timeout
        while b"\n" not in self._received:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                raise self._fail(f"{self._folder} gave no answer in {self._timeout:g} seconds")
            piece = os.read(descriptor, 1 << 16)
            if not piece:
                raise self._fail(self._epitaph())
            self._received += piece
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _fail(self, message: str) -> ValidationError:
        self._failure = ValidationError(message)
        return self._failure

    def _epitaph(self) -> str:
        """How the process ended, and the last that it said."""
        code = self._process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"exited, {code}"
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(said) if line.strip()), "without a word")
        return f"the process that measured {self._folder} {how}: {last}"
