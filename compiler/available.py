# SPDX-License-Identifier: Apache-2.0
"""What is left of a machine's memory and disks, as far as this process may take it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def memory(proc: Path = _PROC, cgroup: Path = _CGROUP) -> int | None:
    """Bytes that this process may hold in all: what it has and what is free, up to the limits of
    its control groups. None where the system does not say."""
    try:
        free = _field(proc / "meminfo", "MemAvailable") + _field(proc / "self/status", "VmRSS")
    except (OSError, KeyError):  # not Linux
        return None
    return min([free, *_limits(proc, cgroup)])


def disk(folder: Path) -> int:
    """Bytes that are free where a folder is, or will be."""
    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free


def _field(path: Path, name: str) -> int:
    """A line such as `MemAvailable:  123 kB`, in bytes."""
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return 1024 * int(value.split()[0])
    raise KeyError(name)


def _limits(proc: Path, cgroup: Path) -> Iterator[int]:
    """Limits of the groups that this process is in, and of those around them."""
    try:
        lines = (proc / "self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":  # version 2
            root, name = cgroup, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = cgroup / "memory", "memory.limit_in_bytes"
        else:
            continue
        # In a container the root may be the container's own, and the group a name outside of it.
        here = root / group.lstrip("/")
        for folder in (here, *here.parents):
            yield from _limit(folder / name)
            if folder == root:
                break


def _limit(path: Path) -> Iterator[int]:
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return
    if text.isdecimal():  # not `max`
        yield int(text)
