# SPDX-License-Identifier: Apache-2.0
"""What a build says while it runs, on standard error: a bar with time left, a line per step."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from prunec.validators.units import count, printable

#: Seconds between the lines that stand in for a bar where there is none.
LINES_APART = 60.0

_REMEMBERED = 3600.0  # seconds that time left is estimated from: a generation may take minutes


class Narrator:
    """Tells of steps. Bars on a terminal; elsewhere, and with PRUNEC_NO_PROGRESS, lines only."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self._clock = clock
        self._bars = console.is_terminal and not os.environ.get("PRUNEC_NO_PROGRESS")

    def say(self, text: str) -> None:
        self.console.print(Text(printable(text)), soft_wrap=True)

    @contextmanager
    def step(self, label: str) -> Iterator[Callable[[int, int, str], None]]:
        """Show a step's progress while it runs: what it yields is told done, of, note."""
        if self._bars:
            with self._bar(label) as update:
                yield update
        else:
            self._whisper(f"{label} …")
            yield self._lines(label)

    @contextmanager
    def _bar(self, label: str) -> Iterator[Callable[[int, int, str], None]]:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}", markup=False),
            _Times(Column(no_wrap=True)),
        )
        with Progress(
            *columns,
            console=self.console,
            transient=True,
            get_time=self._clock,
            speed_estimate_period=_REMEMBERED,
        ) as bar:
            task = bar.add_task(printable(label), total=None, state="")

            def update(done: int, total: int, note: str) -> None:
                state = printable(_state(done, total, note))
                bar.update(task, completed=done, total=total, state=state)

            yield update

    def _lines(self, label: str) -> Callable[[int, int, str], None]:
        due = self._clock() + LINES_APART

        def update(done: int, total: int, note: str) -> None:
            nonlocal due
            if self._clock() >= due:
                self._whisper(f"{label}: {_state(done, total, note)}")
                due = self._clock() + LINES_APART

        return update

    def _whisper(self, text: str) -> None:
        self.console.print(Text(f"  {printable(text)}", style="dim"), soft_wrap=True)


class _Times(ProgressColumn):
    """Time taken, and time left where it can be told."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        left = None if task.total is None else task.time_remaining
        text = _clock_face(task.elapsed or 0.0)
        return Text(text if left is None else f"{text}, {_clock_face(left)} left", style="dim")


def _state(done: int, total: int, note: str) -> str:
    """3/8 layers; 164 k/655 k token-forwards."""
    return f"{_short(done)}/{_short(total)} {note}"


def _short(value: int) -> str:
    return str(value) if value < 10_000 else count(value)


def _clock_face(seconds: float) -> str:
    """71.3 → "1:11"; 3671 → "1:01:11"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
