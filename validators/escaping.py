# SPDX-License-Identifier: Apache-2.0
"""Text of recipes, models and file names, set in Markdown as it is: none of it is markup."""

from __future__ import annotations

import re

from prunec.validators.units import printable

#: What Markdown, GitHub's with tables and formulas, would take for markup within a line. An
#: underscore inside a word is none, nor is an ampersand that begins no entity.
_MARKUP = re.compile(r"[\\`*\[\]<~$|]|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])")
#: What makes a list, a heading, a quotation or a rule of a line that begins with it.
_LEADING = re.compile(r"(?:[#+=>-]|\d+(?=[.)]))")
_CODE = re.compile(r"(`[^`]+`)")


def one_line(text: str) -> str:
    """The text without line breaks and control characters."""
    return printable(" ".join(text.split()))


def inline(text: str) -> str:
    """One line of text as it is, within a line or in a table's cell."""
    return _MARKUP.sub(r"\\\g<0>", one_line(text))


def sentence(text: str) -> str:
    """One line of ours that may quote anybody's text: of markup, only `code` is one."""
    parts = _CODE.split(one_line(text))
    parts[::2] = [_MARKUP.sub(r"\\\g<0>", part) for part in parts[::2]]
    return _at_a_lines_beginning("".join(parts))


def code(text: str) -> str:
    """One line of text between backticks, of which it may hold some."""
    line = one_line(text)
    if not line:
        return ""
    ticks = "`" * (_longest_run(line) + 1)
    padding = " " if line[0] in " `" or line[-1] in " `" else ""
    return f"{ticks}{padding}{line}{padding}{ticks}"


def code_cell(text: str) -> str:
    """One line of code in a table's cell, where a bar stays a bar only behind a backslash."""
    line = one_line(text)
    return inline(line) if "\\|" in line or line.endswith("\\") else code(line).replace("|", "\\|")


def fenced(text: str, language: str = "") -> str:
    """Lines of text as a code block, fenced with more backticks than they have in a row."""
    fence = "`" * max(3, _longest_run(text) + 1)
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return f"{fence}{language}\n{printable(lines)}\n{fence}"


def _at_a_lines_beginning(line: str) -> str:
    found = _LEADING.match(line)
    if found is None:
        return line
    end = found.end()  # a backslash before a digit would stay one
    return f"{line[:end]}\\{line[end:]}" if line[0].isdigit() else f"\\{line}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall(r"`+", text)), default=0)
