# SPDX-License-Identifier: Apache-2.0
"""Multiple-choice items made of the standard library of the Python that runs this.

They come from the modules of the evaluation split only, on which no model of prunec was trained,
calibrated or chosen. One version of Python gives the same items every time: all draws are seeded.
Each public function is a `custom_dataset` of lm-eval and returns a split `test` of `ITEMS` rows:
`context` (text), `choices` (four texts, one of which continues it) and `answer` (its index).
"""

from __future__ import annotations

import io
import keyword
import tokenize
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import combinations
from random import Random
from typing import NamedTuple

from datasets import Dataset, DatasetDict

from prunec.compiler.calibration.python_stdlib import files

ITEMS = 300
WRONG = 3
#: What a context may hold: some 170 tokens of pytiny, and below 300 with any choice.
LINES, CHARACTERS = 20, 600

_CLOSING = {"(": ")", "[": "]", "{": "}"}
#: Code closes with ")" nearly always, so each of these is right `MOST` times at most, and wrong as
#: often as any other: always liking the commonest best gets 29 % right, where chance gets 25 %.
_CLOSINGS = (")", "]", "}", "))", "])", ")]", ")))")
MOST = 50


class Item(NamedTuple):
    context: str
    right: str
    wrong: list[str]


class Module:
    """The lines of a module, each with its newline, and its tokens."""

    def __init__(self, text: str) -> None:
        self.lines = text.splitlines(keepends=True)
        self.tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))

    def before(self, row: int, column: int = 0) -> str:
        """The context of a place: whole lines, and the part of its own. Rows count from 1."""
        here = self.lines[row - 1][:column]
        above = self.lines[max(0, row - 1 - LINES) : row - 1]
        while above and sum(map(len, above)) + len(here) > CHARACTERS:
            del above[0]
        return "".join(above) + here


def next_line(**_: object) -> DatasetDict:
    """Which line of code follows; the wrong ones are about as long and from the same module."""
    random = Random("next line")
    return _dataset(_sample((item for m in _modules() for item in _lines(m, random)), random))


def brackets(**_: object) -> DatasetDict:
    """How the open brackets close, and the line with them."""
    random = Random("brackets")
    found: dict[str, list[Item]] = {closing: [] for closing in _CLOSINGS}
    for module in _modules():
        for closing, item in _closings(module, random):
            found[closing].append(item)
    some = [_sample(items, random)[:MOST] for items in found.values()]
    return _dataset(_sample((item for items in some for item in items), random))


def names(**_: object) -> DatasetDict:
    """Which name stands here; all four were used before in the context."""
    random = Random("names")
    return _dataset(_sample((item for m in _modules() for item in _names(m, random)), random))


@cache
def _modules() -> tuple[Module, ...]:
    return tuple(Module(file.read_text(encoding="utf-8")) for file in files("evaluation"))


def _lines(module: Module, random: Random) -> Iterator[Item]:
    """One item for every line that is a whole statement and not in its own context."""
    code = {}
    first = None
    for token in module.tokens:
        if token.type == tokenize.NEWLINE:
            if first and first.start[0] == token.start[0] and first.type != tokenize.STRING:
                code[first.start[0]] = module.lines[first.start[0] - 1]
            first = None
        elif token.type not in (tokenize.INDENT, tokenize.DEDENT, tokenize.NL, tokenize.COMMENT):
            first = first or token
    pool = sorted(set(code.values()))
    for row, line in code.items():
        size = len(line.strip())
        context = module.before(row)
        if size < 12 or row <= LINES or line.strip() in context:
            continue
        alike = [
            other
            for other in pool
            if abs(len(other.strip()) - size) <= size // 8
            and other.strip() != line.strip()
            and other.strip() not in context
        ]
        if len(alike) >= WRONG:
            yield Item(context, line, random.sample(alike, WRONG))


def _closings(module: Module, random: Random) -> Iterator[tuple[str, Item]]:
    """One item for every run of closing brackets that has something inside."""
    run, inside = "", ""
    start = end = (0, 0)
    for token in module.tokens:
        bracket = token.type == tokenize.OP and token.string in _CLOSING.values()
        if bracket and run and token.start == end:
            run += token.string
        else:
            if run in _CLOSINGS and inside not in _CLOSING:
                rest = module.lines[end[0] - 1][end[1] :]
                wrong = random.sample([c for c in _CLOSINGS if c != run], WRONG)
                if start[0] > LINES // 2 and len(rest) <= 16:
                    item = Item(
                        module.before(*start), run + rest, [closing + rest for closing in wrong]
                    )
                    yield run, item
            run = token.string if bracket else ""
            start = token.start
        if not bracket:
            inside = token.string
        end = token.end


def _names(module: Module, random: Random) -> Iterator[Item]:
    """One item for every name whose context holds it and three others."""
    names = [
        token
        for token in module.tokens
        if token.type == tokenize.NAME
        and len(token.string) > 2
        and token.string != "self"
        and not keyword.iskeyword(token.string)
    ]
    for index, token in enumerate(names):
        row, column = token.start
        context = module.before(row, column)
        top = row - context.count("\n")
        seen = {
            other.string for other in names[max(0, index - 200) : index] if other.start[0] >= top
        }
        others = sorted(seen - {token.string})
        if row <= LINES or token.string not in seen or len(others) < WRONG:
            continue
        wrong = random.sample(others, WRONG)
        # A name that begins another one would be right wherever the longer one is.
        if not any(
            a.startswith(b) or b.startswith(a) for a, b in combinations([token.string, *wrong], 2)
        ):
            yield Item(context, token.string, wrong)


def _sample(items: Iterable[Item], random: Random) -> list[Item]:
    """`ITEMS` of them in random order, or all where there are fewer."""
    found = list(items)
    return random.sample(found, min(ITEMS, len(found)))


def _dataset(items: list[Item]) -> DatasetDict:
    """Rows with the right answer in all places alike often."""
    rows = []
    for index, item in enumerate(items):
        answer = index % (WRONG + 1)
        choices = [*item.wrong[:answer], item.right, *item.wrong[answer:]]
        rows.append({"context": item.context, "choices": choices, "answer": answer})
    return DatasetDict({"test": Dataset.from_list(rows)})
