# SPDX-License-Identifier: Apache-2.0
"""What a user is told when something is wrong: one sentence, where it is, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from prunec.compiler.secrets import redacted


@dataclass(frozen=True)
class Diagnostic:
    """One mistake: a sentence, the place it points at, and advice."""

    message: str
    """One sentence, without a full stop: what is wrong, and what would be legal."""
    where: str | None = None
    """`file:line:column`, a file, or the command line option at fault."""
    hint: str | None = None
    """What to do about it."""

    def render(self) -> str:
        """The diagnostic as it is printed: `where: message`, the hint on a line of its own."""
        line = _one_line(f"{self.where}: {self.message}" if self.where else self.message)
        return f"{line}\n  hint: {_one_line(self.hint)}" if self.hint else line


class UserError(Exception):
    """The recipe or the command line is wrong; carries every mistake that was found."""

    exit_code: ClassVar[int] = 2

    def __init__(self, *diagnostics: Diagnostic) -> None:
        super().__init__(*diagnostics)
        self.diagnostics: tuple[Diagnostic, ...] = diagnostics

    def __str__(self) -> str:
        return "\n".join(diagnostic.render() for diagnostic in self.diagnostics)


class RecipeProblemError(Exception):
    """A mistake in a recipe that shows only beside its model or its text.

    `key` is the dotted key at fault; the command line turns it into a place.
    """

    def __init__(self, key: str, message: str, hint: str | None = None) -> None:
        super().__init__(key, message)
        self.key = key
        self.message = message
        self.hint = hint


class BuildError(Exception):
    """A build that was asked for rightly cannot go on: a file, the memory, a library, a model."""

    exit_code: ClassVar[int] = 3

    def __init__(self, message: str, hint: str | None = None) -> None:
        message = redacted(message)  # a library's words, in which a URL may hold a password
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return Diagnostic(self.message, hint=self.hint).render()


def printable(text: str, limit: int = 60) -> str:
    """A user's text on one line, shortened, with nothing in it that a terminal would obey."""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return _escaped(text)


def _one_line(text: str) -> str:
    """A sentence of a library or of ours that quotes a name: no line of it may begin with what a
    CI runner takes for a command, and no character is one that a terminal would obey."""
    return _escaped(" ".join(line.strip() for line in text.splitlines()))


def _escaped(text: str) -> str:
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def quoted(text: str) -> str:
    """A user's text as it stands in a sentence."""
    return f'"{printable(text)}"'


def shown(value: object) -> str:
    """A value of a recipe as it stands in a sentence, in YAML's words."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    names = {None: "null", True: "true", False: "false"}
    return names[value] if value is None or isinstance(value, bool) else printable(str(value))
