# SPDX-License-Identifier: Apache-2.0
"""A sweep as JSON, Markdown, HTML and pictures, and on the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from prunec.validators.blocks import Section
from prunec.validators.files import utf8, write_files
from prunec.validators.html import Page, set_page
from prunec.validators.markdown import markdown_page
from prunec.validators.picture_of_front import describe_front, draw_front, has_front
from prunec.validators.pictures import Picture
from prunec.validators.sections_of_sweep import (
    failures_table,
    points_table,
    sections_of_sweep,
    speeds_table,
)
from prunec.validators.sweep import SweepResult
from prunec.validators.tables import plain, render_section

if TYPE_CHECKING:
    from rich.console import Console

_PICTURES = ("front.svg", "front.png")

#: All that a sweep may write of its own, the one first that is written first.
SWEEP_FILES = ("sweep.json", "sweep.md", "sweep.html", *_PICTURES)


def write_sweep(result: SweepResult, folder: Path) -> list[Path]:
    """Write sweep.json, sweep.md, sweep.html, and front.svg and front.png. Returns the paths.

    Each file is written whole or not at all. Without anything to draw there are no pictures, and
    those of an earlier sweep go. OSError if the folder, which is created if needed, cannot be
    written.
    """
    pictures = _pictures(result)
    content = json.dumps(result.as_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    files = {
        "sweep.json": utf8(content + "\n"),
        "sweep.md": utf8(_markdown(result, pictures)),
        "sweep.html": utf8(_html(result, pictures)),
    }
    for picture in pictures:
        files |= picture.files()
    return write_files(folder, files, stale=_PICTURES)


def render_sweep(result: SweepResult, console: Console, folder: Path | None = None) -> None:
    """The points, what did not pass, and the best; where things are, in the sweep's `folder`."""
    for table in (points_table(result), speeds_table(result)):
        if table is not None:
            render_section(Section(table.caption, (table,)), console)
    if failures := failures_table(result):
        render_section(Section(failures.caption, (failures,)), console)
    console.print(plain(result.tally, "dim"))
    console.print(plain(result.sentence, "bold"), soft_wrap=True)
    if folder:
        console.print(plain(f"sweep   {folder / 'sweep.html'}"), soft_wrap=True)


def _pictures(result: SweepResult) -> list[Picture]:
    if not has_front(result):
        return []
    words = describe_front(result)
    return [Picture("front", words, lambda theme, width: draw_front(result, theme, width))]


def _markdown(result: SweepResult, pictures: list[Picture]) -> str:
    heading = f"{result.verdict.capitalize()}: {result.title}"
    lede = (result.sentence, result.tally)
    return markdown_page(heading, lede, (), sections_of_sweep(result), pictures)


def _html(result: SweepResult, pictures: list[Picture]) -> str:
    by = result.reports[0].prunec_version if result.reports else ""
    return set_page(
        Page(
            title=f"{result.verdict.capitalize()}: {result.title} – prunec sweep",
            eyebrow="prunec sweep",
            verdict=result.verdict,
            name=result.title,
            lede=(result.sentence, result.tally),
            findings=(),
            sections=sections_of_sweep(result),
            pictures=pictures,
            generator=f"prunec {by}".strip(),
        )
    )
