# SPDX-License-Identifier: Apache-2.0
"""Memory that is freed goes back to the system: glibc keeps much of it otherwise, of tensors of up
to 32 MiB, and what one step has freed then counts in the next one's peak. Only where glibc is."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

_MMAP_THRESHOLD = -3  # as glibc's malloc.h numbers it
_LARGE = 2**20


def give_back_at_once() -> None:
    """From now on, whatever is larger than a mebibyte is mapped by itself, and gone when it is
    freed. New pages have to be zeroed: builds took a twentieth longer."""
    if mallopt := _of_glibc("mallopt"):
        mallopt(_MMAP_THRESHOLD, _LARGE)


def give_back() -> None:
    """What is free by now."""
    if malloc_trim := _of_glibc("malloc_trim"):
        malloc_trim(0)


def _of_glibc(name: str) -> Callable[..., object] | None:
    try:
        return getattr(ctypes.CDLL("libc.so.6"), name, None)
    except OSError:
        return None
