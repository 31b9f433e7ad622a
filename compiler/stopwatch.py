# SPDX-License-Identifier: Apache-2.0
"""Seconds of work that a device may still be busy with when the call returns."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def seconds(device: torch.device, run: Callable[[], object]) -> float:
    """From when the device is idle to when it has finished what `run` gives it."""
    _finish(device)
    began = time.perf_counter()
    run()
    _finish(device)
    return time.perf_counter() - began


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
