# SPDX-License-Identifier: Apache-2.0
"""What a step's bytes hang on beside its recipe: the libraries' versions and the kind of device.

Known without PyTorch, so that a plan has the fingerprints of a build on the same machine.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from prunec.compiler.recipe_resources import Resources

_LIBRARIES = ("torch", "transformers", "tokenizers")


def surroundings(resources: Resources) -> dict[str, Any]:
    """As part of a fingerprint, JSON-ready."""
    return {
        "device": device_kind(resources.device),
        **{name: _version(name) for name in _LIBRARIES},
    }


def device_kind(asked: Literal["auto", "cpu", "cuda"]) -> str:
    """`cpu`, or the name of the GPU that a build would work on here; `cuda` where one is asked for
    that is somewhere else."""
    if asked == "cpu":
        return "cpu"
    return _gpu_name() or ("cuda" if asked == "cuda" else "cpu")


@cache
def _gpu_name() -> str | None:
    """Of the first GPU that the driver shows to this process, as PyTorch names it; None where there
    is none or PyTorch is built without GPUs."""
    if "+cpu" in _version("torch"):
        return None
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, device, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    if driver.cuDeviceGet(ctypes.byref(device), 0) or driver.cuDeviceGetName(name, 256, device):
        return None
    return name.value.decode("utf-8", "replace")


@cache
def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "none"
