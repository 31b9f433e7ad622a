# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks that build have in common: one build in a process of its own."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"


class BuildFailedError(Exception):
    """A build ended without a report, or without a finite perplexity."""


@dataclass(frozen=True)
class Build:
    """report: the content of report.json; peak_bytes: the most memory that the process held;
    cpu_seconds: of all its threads, which hardly change with what else the machine does.

    Linux counts towards the memory what the starting process held: keep that one small.
    """

    report: dict[str, Any]
    peak_bytes: int
    cpu_seconds: float


def build(
    recipe: Path,
    output: Path,
    settings: Iterable[str],
    *,
    threads: int | None = None,
    fresh: bool = False,
) -> Build:
    """Run a build, which may fail its gates: they are not what is compared. BuildFailedError.

    `settings` are values for `--set`; `threads` as for `environment`; `fresh` takes nothing from
    an earlier build in the same folder.
    """
    command = [sys.executable, "-m", "prunec.compiler", "build", str(recipe)]
    command += ["--output", str(output), "--json", *(["--fresh"] if fresh else [])]
    command += [part for setting in settings for part in ("--set", setting)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment(threads))
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        said, told = out.read(), err.read().decode(errors="replace")
    # Failed gates end with 1, and so does Python where something is wrong with the program.
    if process.returncode not in (0, 1) or not said:
        raise BuildFailedError(
            f"{' '.join(command)}\nended with exit code {process.returncode}:\n{told}"
        )
    report: dict[str, Any] = json.loads(said)
    if report["perplexity"] is None or report["perplexity"]["ratio"]["value"] is None:
        raise BuildFailedError(f"{output}: no finite perplexity was measured")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Build(report, peak, usage.ru_utime + usage.ru_stime)


def environment(threads: int | None) -> Mapping[str, str]:
    """Of a process that computes with so many threads; with torch's own choice if None."""
    if threads is None:
        return os.environ
    # Two builds side by side would otherwise burn each other's cores while their threads wait.
    limits = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return {**os.environ, **limits, "OMP_WAIT_POLICY": "PASSIVE"}


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± standard deviation; the value alone if there is one."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean
