# SPDX-License-Identifier: Apache-2.0
"""The terminal that commands print to: text appears there as it is, whoever wrote it."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from prunec.validators.units import printable


class PlainConsole(Console):
    """A console to which `[x]` of a path or a name is no markup and `:x:` no picture, and that
    obeys no control character."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(printable(text), **settings)


def stdout() -> Console:
    # Piped into a file there is no terminal's width to keep to.
    return PlainConsole(width=None if sys.stdout.isatty() else 120)


def stderr() -> Console:
    return PlainConsole(stderr=True)
