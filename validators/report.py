# SPDX-License-Identifier: Apache-2.0
"""Writing a report: report.json and report.md in a folder, and the summary of a CI step."""

from __future__ import annotations

import json
import os
from pathlib import Path

from prunec.validators.markdown import markdown
from prunec.validators.results import (
    CompletionResult,
    Cost,
    Divergence,
    ModelSize,
    PerplexityResult,
    Report,
    SearchPoint,
    SearchResult,
    StepCost,
)
from prunec.validators.tables import render_table

__all__ = [
    "CompletionResult",
    "Cost",
    "Divergence",
    "ModelSize",
    "PerplexityResult",
    "Report",
    "SearchPoint",
    "SearchResult",
    "StepCost",
    "append_step_summary",
    "render_table",
    "write_report",
]


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write report.json and report.md, each whole or not at all. Returns their paths.

    OSError if the folder, which is created if needed, cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(report.as_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    texts = {"report.json": content + "\n", "report.md": markdown(report)}
    for name, text in texts.items():
        _write_atomically(folder / name, text)
    return [folder / name for name in texts]


def append_step_summary(report: Report) -> None:
    """Append report.md to the file that $GITHUB_STEP_SUMMARY names, if it is set.

    OSError if that file cannot be written.
    """
    if path := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(markdown(report))


def _write_atomically(path: Path, text: str) -> None:
    # A fixed name, so that what a killed run left behind is overwritten, not collected.
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        # A tokenizer may decode to lone surrogates, which UTF-8 cannot hold.
        file.write(text.encode("utf-8", "replace").decode("utf-8"))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
