# SPDX-License-Identifier: Apache-2.0
"""Writing a report: as JSON, Markdown, HTML and JUnit XML, and as the summary of a CI step."""

from __future__ import annotations

import json
import os
from pathlib import Path

from prunec.validators.files import utf8, write_files
from prunec.validators.html import html
from prunec.validators.junit import junit_xml
from prunec.validators.markdown import markdown
from prunec.validators.measurements import PerplexityResult
from prunec.validators.pictures import PICTURE_FILES, pictures_of
from prunec.validators.results import (
    CompletionResult,
    Cost,
    Divergence,
    ModelSize,
    RecoveryPoint,
    RecoveryResult,
    Report,
    SearchPoint,
    SearchResult,
    StepCost,
    SurrogateResult,
    TrialResult,
    TuningResult,
)
from prunec.validators.tables import render_table

__all__ = [
    "LM_EVAL",
    "REPORT_FILES",
    "CompletionResult",
    "Cost",
    "Divergence",
    "ModelSize",
    "PerplexityResult",
    "RecoveryPoint",
    "RecoveryResult",
    "Report",
    "SearchPoint",
    "SearchResult",
    "StepCost",
    "SurrogateResult",
    "TrialResult",
    "TuningResult",
    "append_step_summary",
    "render_table",
    "write_report",
]

#: All that a report may be made of, the one first that is written first. Beside these lies what
#: lm-eval wrote, in a folder.
REPORT_FILES = ("report.json", "report.md", "report.html", "junit.xml", *PICTURE_FILES)
LM_EVAL = "lm-eval"


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write report.json, report.md with its pictures, report.html and junit.xml. Returns the paths.

    Each file is written whole or not at all.
    Pictures of an earlier report that this one has not are removed. OSError if the folder, which is
    created if needed, cannot be written.
    """
    pictures = pictures_of(report)
    content = json.dumps(report.as_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    files = {
        "report.json": utf8(content + "\n"),
        "report.md": utf8(markdown(report, pictures)),
        "report.html": utf8(html(report)),
        "junit.xml": utf8(junit_xml(report)),
    }
    for picture in pictures:
        files |= picture.files()
    return write_files(folder, files, stale=PICTURE_FILES)


def append_step_summary(report: Report) -> None:
    """Append report.md to the file that $GITHUB_STEP_SUMMARY names, if it is set.

    Without its pictures: a summary has no folder beside it that they could lie in.
    OSError if that file cannot be written.
    """
    if path := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(markdown(report))
