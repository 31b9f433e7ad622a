# SPDX-License-Identifier: Apache-2.0
"""What of a row is its document: the text of a field, or a conversation through a template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from prunec.compiler.calibration.document import Record, SourceError

#: Fields that hold conversations, and pairs of what a user says and what a model answers.
CONVERSATIONS = ("messages", "conversations")
PAIRS = (("prompt", "completion"), ("instruction", "output"))

_NAMED = 12  # fields that a sentence names, at most


class RowError(Exception):
    """A row that holds no document; who has read it knows where it stands."""

    def __init__(self, problem: str, hint: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint

    def at(self, place: object) -> SourceError:
        return SourceError(f"{place}: {self.problem}", self.hint)


class Choice(Protocol):
    """Takes the document out of a row. `wanted`: what a row must be, for a sentence."""

    @property
    def wanted(self) -> str: ...

    def columns(self, there: Sequence[str]) -> list[str]:
        """Those of a table's columns that are read. RowError if no document is in them."""

    def text(self, row: Mapping[str, Any]) -> str | None:
        """The document; None where the row has null. RowError."""


@dataclass(frozen=True)
class TextField:
    """Rows whose document is the text of one field."""

    name: str

    @property
    def wanted(self) -> str:
        return f"JSON object with a text field {self.name!r}"

    def columns(self, there: Sequence[str]) -> list[str]:
        if self.name not in there:
            raise RowError(f"no text field {self.name!r}", self._advice(there))
        return [self.name]

    def text(self, row: Mapping[str, Any]) -> str | None:
        text = row.get(self.name)
        if isinstance(text, str) or (text is None and self.name in row):
            return text
        raise RowError(f"no {self.wanted}", self._advice(list(row)))

    def _advice(self, there: Sequence[str]) -> str:
        advice = f"its fields: {fields(there)}"
        if {*CONVERSATIONS} & {*there} or any({*pair} <= {*there} for pair in PAIRS):
            return f"kind: chat reads conversations; {advice}"
        return advice


def record(choice: Choice, name: str, row: Any) -> Record:
    """A row as a record. RowError."""
    if not isinstance(row, Mapping):
        raise RowError(f"no {choice.wanted}")
    text = choice.text(row)
    return Record(name, text, len(text or ""))


def fields(there: Sequence[str]) -> str:
    """The names of fields, for a sentence."""
    return (", ".join(map(str, there[:_NAMED])) or "none") + (" …" if there[_NAMED:] else "")
