# SPDX-License-Identifier: Apache-2.0
"""Writing a report: report.json, report.md and its pictures, and the summary of a CI step."""

from __future__ import annotations

import json
import os
from pathlib import Path

from prunec.validators.markdown import markdown
from prunec.validators.pictures import PICTURE_FILES, pictures_of
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
    SurrogateResult,
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
    "SurrogateResult",
    "append_step_summary",
    "render_table",
    "write_report",
]


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write report.json, report.md and the pictures, each whole or not at all. Returns their paths.

    Pictures of an earlier report that this one has not are removed. OSError if the folder, which is
    created if needed, cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = pictures_of(report)
    content = json.dumps(report.as_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    files = {
        "report.json": _utf8(content + "\n"),
        "report.md": _utf8(markdown(report, pictures)),
    }
    for picture in pictures:
        files |= picture.files()
    for old in (folder / name for name in PICTURE_FILES if name not in files):
        old.unlink(missing_ok=True)
    for name, data in files.items():
        _write_atomically(folder / name, data)
    return [folder / name for name in files]


def append_step_summary(report: Report) -> None:
    """Append report.md to the file that $GITHUB_STEP_SUMMARY names, if it is set.

    Without its pictures: a summary has no folder beside it that they could lie in.
    OSError if that file cannot be written.
    """
    if path := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(markdown(report))


def _utf8(text: str) -> bytes:
    # A tokenizer may decode to lone surrogates, which UTF-8 cannot hold.
    return text.encode("utf-8", "replace")


def _write_atomically(path: Path, data: bytes) -> None:
    if path.is_file() and path.read_bytes() == data:
        return  # a build that is interrupted again and again still gets to its end
    # A fixed name, so that what a killed run left behind is overwritten, not collected.
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
