# SPDX-License-Identifier: Apache-2.0
"""The tiny model that the validators' tests measure, for reading and for damaging."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def saved_llama(tiny_llama: Callable[..., Path]) -> Path:
    """A model folder that tests share, as transformers saved it. Tests that write take `llama`."""
    return tiny_llama(layers=2, hidden=32, head_dim=8, ffn=48, tied=True)


@pytest.fixture
def llama(saved_llama: Path, tmp_path: Path) -> Path:
    """A copy of the model folder."""
    return shutil.copytree(saved_llama, tmp_path / "llama")
