# SPDX-License-Identifier: Apache-2.0
"""What a build says while it runs, on standard error: a bar with time left, a line per step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Narrator:
    """Tells of steps. Bars on a terminal; elsewhere, and with PRUNEC_NO_PROGRESS, lines only."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars = console.is_terminal and not os.environ.get("PRUNEC_NO_PROGRESS")

    def say(self, text: str) -> None:
        self.console.print(escape(text), highlight=False, soft_wrap=True)

    @contextmanager
    def step(self, label: str) -> Iterator[StepProgress]:
        """Show a step's progress while it runs."""
        if not self._bars:
            self.console.print(f"  {escape(label)} …", style="dim", highlight=False, soft_wrap=True)
            yield StepProgress(None, label)
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("[dim]left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as bar:
            yield StepProgress(bar, label)


class StepProgress:
    """The callable that a running step reports to: done, of, note."""

    def __init__(self, bar: Progress | None, label: str) -> None:
        self._bar = bar
        self._task = bar.add_task(escape(label), total=None, note="") if bar else None

    def __call__(self, done: int, total: int, note: str) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, note=escape(note))
