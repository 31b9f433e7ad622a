# SPDX-License-Identifier: Apache-2.0
"""Anybody's text in Markdown, read back by a renderer that shares no code with what wrote it."""

from __future__ import annotations

import html
import random
import re

import pytest
from markdown_it import MarkdownIt

from prunec.validators.escaping import code, code_cell, fenced, inline, one_line, sentence

RENDERER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
PIECES = [*"`*_[]()<>|\\~$&#;!-+=1.) ab\n", "<script>", "&lt;", "``", "<a href='x'>", "\x1b[31m"]


def drawn(number: int) -> list[str]:
    """Texts made of what Markdown and HTML take for markup, the same ones each time."""
    draw = random.Random(0)
    return ["".join(draw.choices(PIECES, k=draw.randint(1, 12))) for _ in range(number)]


def shown(rendered: str) -> str:
    """What a reader sees."""
    return html.unescape(re.sub(r"<[^>]*>", "", rendered)).strip()


def tags(rendered: str) -> set[str]:
    return set(re.findall(r"</?(\w+)[^>]*>", rendered))


@pytest.mark.parametrize(("write", "made"), [(code, {"p", "code"}), (sentence, {"p", "code"})])
def test_a_line_is_shown_as_it_is(write: object, made: set[str]) -> None:
    assert callable(write)
    for text in drawn(2000):
        rendered = RENDERER.render(write(text))
        assert tags(rendered) <= made, text
        if write is code or "`" not in text:
            assert shown(rendered) == one_line(text).strip(), text


@pytest.mark.parametrize("write", [inline, code_cell])
def test_a_cell_is_shown_as_it_is_and_stays_one(write: object) -> None:
    assert callable(write)
    for text in drawn(2000):
        rendered = RENDERER.render(f"| a | b |\n| --- | --- |\n| {write(text)} | x |")
        cells = re.findall(r"<td>(.*?)</td>", rendered, re.DOTALL)
        assert len(cells) == 2, text
        assert (shown(cells[0]), cells[1]) == (one_line(text).strip(), "x")
        assert tags(cells[0]) <= {"code"}


def test_lines_stay_in_their_code_block() -> None:
    for text in (*drawn(500), "```\n## Measured\n```", "````"):
        rendered = RENDERER.render(fenced(text, "yaml") + "\n\nbehind")
        assert tags(rendered) == {"pre", "code", "p"}
        assert rendered.endswith("<p>behind</p>\n")


def test_what_needs_no_backslash_has_none() -> None:
    for text in ("python_names of 3 (95 % interval 0.1 … 0.2), -0.5 < 1".replace("<", "≤"), "a&b"):
        assert inline(text) == text
    assert sentence("take `a_*`") == "take `a_*`"
