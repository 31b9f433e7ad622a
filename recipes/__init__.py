# SPDX-License-Identifier: Apache-2.0
"""The recipes that ship with prunec: plain YAML files, installed with the wheel."""

from __future__ import annotations

from pathlib import Path


def folder() -> Path:
    """The folder that holds the shipped recipes."""
    return Path(__file__).parent


def find(path: Path) -> Path:
    """The file that a user means: a path, or the bare name of a shipped recipe."""
    if path.exists() or path.parent != Path() or path.suffix:
        return path
    candidate = folder() / f"{path.name}.yaml"
    return candidate if candidate.is_file() else path


def first_sentence(path: Path) -> str:
    """What a recipe says of itself, in its comments."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line.lstrip("# ") for line in lines if line.startswith("#")]
    text = " ".join(line for line in comments if line and "yaml-language-server" not in line)
    return text.partition(". ")[0]
