# SPDX-License-Identifier: Apache-2.0
"""The recipes that ship with prunec: plain YAML files, installed with the wheel."""

from __future__ import annotations

from pathlib import Path


def folder() -> Path:
    """The folder that holds the shipped recipes."""
    return Path(__file__).parent
