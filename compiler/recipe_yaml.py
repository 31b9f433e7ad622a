# SPDX-License-Identifier: Apache-2.0
"""Reads YAML text into plain values, and remembers where each of them stands.

PyYAML is used for its event stream only: it is maintained, already present wherever transformers
is, and its events carry a line and a column for keys and values alike. What it would do beyond
that is unfit for a recipe, and is done here instead: it reads YAML 1.1 (`1e-3` is a string, `no`
is false, `1:30` is 90), lets the last of two equal keys win, expands aliases without bound, and
recurses once for every level of nesting. ruamel.yaml would read YAML 1.2, but keeps positions of
mappings only, and would be one more package. Numbers follow the core schema of YAML 1.2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml
from yaml import events

from prunec.compiler.diagnostics import Diagnostic, UserError, quoted, shown
from prunec.compiler.secrets import SECRET

MAX_DEPTH = 32
MAX_NODES = 10_000

Path = tuple[str | int, ...]
"""The keys and indices that lead to a value from the top."""

NULL = re.compile(r"~|null|Null|NULL|")
BOOL = re.compile(r"true|True|TRUE|(false|False|FALSE)")
INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass(frozen=True, order=True)
class Origin:
    """Where a piece of a recipe was written; sorts in reading order."""

    line: int
    column: int
    place: str
    """As it is printed: `file:line:column`, or the command line option."""


@dataclass
class Document:
    """The values of a recipe, and the origin of each."""

    top: Origin
    value: Any = None
    keys: dict[Path, Origin] = field(default_factory=dict)
    """Where a key (or a list's item) begins."""
    values: dict[Path, Origin] = field(default_factory=dict)
    """Where a value begins."""
    problems: list[tuple[Origin, Diagnostic]] = field(default_factory=list)
    """Mistakes that did not keep the rest from being read."""

    def is_section(self, path: Path) -> bool:
        """Whether a mapping or a list stands at a path."""
        value = self.value
        for element in path:
            try:
                value = value[element]
            except (KeyError, IndexError):
                return False
        return isinstance(value, dict | list)


def read_yaml(text: str, name: str) -> Document:
    """Reads one YAML document, None when there is nothing in it; messages call it `name`.

    Raises UserError where the text cannot be read on: syntax, limits, anchors, tags.
    """
    return _Reader(text, name).document()


class _Reader:
    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self.nodes = 0
        self.found = Document(Origin(1, 1, f"{name}:1:1"))
        if unprintable := yaml.reader.Reader.NON_PRINTABLE.search(text):
            self.refuse(
                self.mark(text, unprintable.start()),
                f"the character {quoted(unprintable[0])} is not allowed in YAML",
            )
        if secret := SECRET.search(text):  # in comments too: the text is copied as it is
            self.refuse(
                self.mark(text, secret.start()),
                "this looks like an access token or a password, which a recipe may not hold",
                "recipes are copied into artefacts; put a token into the environment (HF_TOKEN)",
            )
        self.loader = yaml.SafeLoader(text)

    def mark(self, text: str, at: int) -> yaml.Mark:
        before = text[:at]
        line, column = before.count("\n"), len(before) - before.rfind("\n") - 1
        return yaml.Mark(self.name, 0, line, column, None, 0)

    def document(self) -> Document:
        self.expect(events.StreamStartEvent)
        if isinstance(self.peek(), events.StreamEndEvent):
            return self.found
        self.expect(events.DocumentStartEvent)
        self.found.value = self.node((), 0)
        self.expect(events.DocumentEndEvent)
        more = self.peek()
        if not isinstance(more, events.StreamEndEvent):
            self.refuse(more.start_mark, "a recipe is one YAML document, and a second starts here")
        return self.found

    def node(self, path: Path, depth: int) -> Any:
        event = self.next()
        self.nodes += 1
        if self.nodes > MAX_NODES:
            self.refuse(event.start_mark, f"a recipe has at most {MAX_NODES} values")
        if depth > MAX_DEPTH:
            self.refuse(event.start_mark, f"a recipe is nested at most {MAX_DEPTH} levels deep")
        if isinstance(event, events.AliasEvent) or event.anchor is not None:
            self.refuse(
                event.start_mark,
                "anchors and aliases (`&`, `*`) are not allowed in a recipe",
                "write the value out; text that starts with & or * needs quotes",
            )
        if event.tag is not None:
            self.refuse(
                event.start_mark,
                f"tags such as {quoted(event.tag)} are not allowed in a recipe",
                "text that starts with ! needs quotes",
            )
        self.found.values[path] = self.origin(event.start_mark)
        if isinstance(event, events.MappingStartEvent):
            return self.mapping(path, depth)
        if isinstance(event, events.SequenceStartEvent):
            return self.sequence(path, depth)
        return self.scalar(event)

    def sequence(self, path: Path, depth: int) -> list[Any]:
        items: list[Any] = []
        while not isinstance(self.peek(), events.SequenceEndEvent):
            here = (*path, len(items))
            items.append(self.node(here, depth + 1))
            self.found.keys[here] = self.found.values[here]
        self.next()
        return items

    def mapping(self, path: Path, depth: int) -> dict[str, Any]:
        items: dict[str, Any] = {}
        while not isinstance(self.peek(), events.MappingEndEvent):
            mark = self.peek().start_mark
            key = self.node((*path, ""), depth + 1)
            if not isinstance(key, str):
                self.refuse(mark, f"a key must be a string, and this one is {shown(key)}")
            if key == "<<":
                self.refuse(mark, "merge keys (`<<`) are not allowed in a recipe", "write them out")
            here = (*path, key)
            if key in items:
                first = self.found.keys[here]
                problem = (
                    f"the key {quoted(key)} is given twice; it was first given at {first.place}"
                )
                self.found.problems.append((self.origin(mark), self.diagnostic(mark, problem)))
            self.found.keys[here] = self.origin(mark)
            items[key] = self.node(here, depth + 1)
        self.next()
        return items

    def scalar(self, event: events.ScalarEvent) -> Any:
        text: str = event.value
        if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
            self.refuse(event.start_mark, f"{quoted(text)} has a character that text may not have")
        if event.style is not None:  # quoted, or a block
            return text
        if NULL.fullmatch(text):
            return None
        if match := BOOL.fullmatch(text):
            return match[1] is None
        if INFINITE.fullmatch(text):
            return float(text.replace(".", ""))
        if FLOAT.fullmatch(text) and not INT.fullmatch(text):
            return float(text)
        if INT.fullmatch(text):
            # Every count fits 64 bits, and Python itself refuses to read thousands of digits.
            base = {"0o": 8, "0x": 16}.get(text[:2], 10)
            if len(text) > 24 or abs(number := int(text, base)) >= 2**63:
                self.refuse(event.start_mark, f"the number {quoted(text)} is too large")
            return number
        return text

    def peek(self) -> events.Event:
        try:
            return self.loader.peek_event()
        except yaml.MarkedYAMLError as error:
            message, hint, at_start = _syntax(error.problem or "")
            began = error.context_mark
            mark = (began if at_start else None) or error.problem_mark or self.loader.get_mark()
            if hint is None and began is not None and began is not mark:
                hint = f"it began at {self.origin(began).place}"
            self.refuse(mark, message, hint)
        except (yaml.YAMLError, ValueError, OverflowError):
            # PyYAML lets some of Python's own errors through, as for the escape "\UFFFFFFFF".
            self.refuse(self.loader.get_mark(), "this is not valid YAML")

    def next(self) -> events.Event:
        event = self.peek()
        self.loader.get_event()
        return event

    def expect(self, kind: type[events.Event]) -> None:
        if not isinstance(self.next(), kind):
            raise AssertionError  # the stream's grammar, which PyYAML keeps

    def origin(self, mark: yaml.Mark) -> Origin:
        line, column = mark.line + 1, mark.column + 1
        return Origin(line, column, f"{self.name}:{line}:{column}")

    def diagnostic(self, mark: yaml.Mark, message: str, hint: str | None = None) -> Diagnostic:
        return Diagnostic(message, self.origin(mark).place, hint)

    def refuse(self, mark: yaml.Mark, message: str, hint: str | None = None) -> NoReturn:
        raise UserError(self.diagnostic(mark, message, hint))


def _syntax(problem: str) -> tuple[str, str | None, bool]:
    """PyYAML's problem in a newcomer's words, a hint, and whether to point at where it began."""
    for phrase, message, hint, at_start in SYNTAX:
        if phrase in problem:
            return message, hint, at_start
    return f"this is not valid YAML ({problem})", None, False


SYNTAX: tuple[tuple[str, str, str | None, bool], ...] = (
    ("character '\\t'", "a tab stands where YAML wants spaces", "indent with spaces", False),
    ("cannot start any token", "text may not start with this character", "quote the text", False),
    ("could not find expected ':'", "this line has no `:` after its key", None, True),
    (
        "mapping values are not allowed",
        "a `:` is not allowed here",
        "indent the keys of one section alike, and quote text that holds `: `",
        False,
    ),
    (
        "sequence entries are not allowed",
        "a list item (`- `) is not allowed here",
        "start it on a line of its own",
        False,
    ),
    (
        "expected <block end>",
        "this does not fit the lines above it",
        "check the indentation, and quote text with special characters",
        False,
    ),
    ("expected ',' or ']'", "a `,` or the list's `]` is missing here", None, False),
    ("expected ',' or '}'", "a `,` or the mapping's `}` is missing here", None, False),
    ("unexpected end of stream", "this quoted text is never closed", None, True),
    ("unexpected document separator", "this quoted text is never closed", None, True),
    (
        "escape",
        "this backslash starts no escape that YAML knows",
        "write two backslashes, or use single quotes",
        False,
    ),
)
"""What PyYAML's problem contains, our message, our hint, and whether to point at the start."""
