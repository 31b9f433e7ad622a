# SPDX-License-Identifier: Apache-2.0
"""What commands print is what was to be printed."""

from __future__ import annotations

import io

from rich.table import Table

from prunec.compiler.progress import Narrator
from prunec.compiler.terminal import PlainConsole

NAME = "[bold]runs[/bold]/[red]a:fire:[/] \x1b[31mb\x07"
SHOWN = "[bold]runs[/bold]/[red]a:fire:[/] \ufffd[31mb\ufffd"


def test_brackets_and_colons_of_names_are_printed_and_controls_are_not_obeyed() -> None:
    for terminal in (False, True):
        file = io.StringIO()
        console = PlainConsole(file=file, width=120, force_terminal=terminal, color_system=None)
        console.print(f"written to {NAME}", highlight=False)
        table = Table(box=None, show_header=False)
        table.add_row(NAME, "[x]")
        console.print(table)
        narrator = Narrator(console)
        narrator.say(f"[1/2] {NAME}")
        with narrator.step(NAME) as update:
            update(1, 2, "[windows]")
        written = file.getvalue()
        assert f"written to {SHOWN}" in written and f"[1/2] {SHOWN}" in written
        assert f"{SHOWN} [x]" in " ".join(written.split())
        assert "\x07" not in written and "\x1b[31m" not in written
