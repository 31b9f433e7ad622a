# SPDX-License-Identifier: Apache-2.0
"""A measurement in a process of its own: a request goes in as JSON, an answer comes out as JSON."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prunec.validators.errors import ValidationError

_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def ask(
    module: str,
    request: Mapping[str, Any],
    *,
    environment: Mapping[str, str] | None = None,
    timeout: float = 1800,
) -> Any:
    """What `module`, run as a program that calls `answer`, makes of a request. It has no network.

    `environment` are defaults: what the user has set is kept. ValidationError is passed on; any
    other failure, or more than `timeout` seconds, is one too, with the last line that was written.
    """
    with tempfile.TemporaryDirectory(prefix="prunec-") as work:
        given, found = Path(work, "request.json"), Path(work, "answer.json")
        given.write_text(json.dumps(request), encoding="utf-8")
        with Path(work, "log.txt").open("w+", encoding="utf-8", errors="replace") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, str(given), str(found)],
                cwd=work,
                env={**(environment or {}), **os.environ, **_OFFLINE},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                raise ValidationError(
                    f"{module} did not finish within {timeout:,.0f} seconds"
                ) from None
            finally:
                _end(process)
            log.seek(0)
            lines = log.read().strip().splitlines()
        if code != 0 or not found.exists():
            how = f"was ended by signal {-code}" if code < 0 else "failed"
            last = f": {lines[-1].strip()[:300]}" if lines else ""
            raise ValidationError(f"{module} {how}{last}")
        response = json.loads(found.read_text(encoding="utf-8"))
        if "error" in response:
            raise ValidationError(response["error"], hint=response["hint"])
        return response["answer"]


def answer(respond: Callable[[dict[str, Any]], Any]) -> None:
    """The other side of `ask`: read the request that the arguments name, and write the answer."""
    given, found = map(Path, sys.argv[1:])
    try:
        response = {"answer": respond(json.loads(given.read_text(encoding="utf-8")))}
    except ValidationError as error:
        response = {"error": error.message, "hint": error.hint}
    found.write_text(json.dumps(response), encoding="utf-8")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let neither the process nor one that it started outlive this."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # none is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
