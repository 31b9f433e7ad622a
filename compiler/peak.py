# SPDX-License-Identifier: Apache-2.0
"""The most memory that the process has held, step by step where the system lets it be forgotten."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path


def forget_peak() -> None:
    """Begin anew, where that can be done: on Linux. Elsewhere the peak is that since the start."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_rss_bytes() -> int:
    """The largest resident set since `forget_peak`."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _status("VmHWM") or (peak if sys.platform == "darwin" else peak * 1024)


def rss_bytes() -> int:
    """The resident set now; where the system does not tell, its largest so far."""
    return _status("VmRSS") or peak_rss_bytes()


def _status(name: str) -> int | None:
    """Bytes in a line of Linux's /proc/self/status."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return None
