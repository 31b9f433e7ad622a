# SPDX-License-Identifier: Apache-2.0
"""report.md: the verdict first, then what it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from prunec.validators.blocks import (
    Block,
    Code,
    Column,
    Completions,
    Figure,
    Paragraph,
    Section,
    Table,
)
from prunec.validators.escaping import code_cell, fenced, inline, sentence
from prunec.validators.sections import sections
from prunec.validators.verdicts import headline, verdict_sentence

if TYPE_CHECKING:
    from prunec.validators.pictures import Picture
    from prunec.validators.results import Report

_WELL = ("", "passed", "same", "measured")


def markdown(report: Report, pictures: Sequence[Picture] = ()) -> str:
    """The text of report.md, with links to those of its pictures that lie beside it."""
    findings = [(gate.verdict, gate.message) for gate in report.gates]
    lede = (verdict_sentence(report),)
    return markdown_page(headline(report), lede, findings, sections(report), pictures)


def markdown_page(
    heading: str,
    lede: Sequence[str],
    findings: Sequence[tuple[str, str]],
    sections: Sequence[Section],
    pictures: Sequence[Picture] = (),
) -> str:
    """A page: sentences under its heading, pairs of a verdict and its sentence, then sections."""
    shown = {picture.name: _picture(picture) for picture in pictures}
    parts = [f"# {sentence(heading)}", *map(sentence, lede)]
    parts.append("\n".join(f"- {_mark(word)}{sentence(message)}" for word, message in findings))
    for section in sections:
        parts += [f"## {section.title}", markdown_blocks(section.blocks, shown)]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_blocks(blocks: Sequence[Block], shown: Mapping[str, str] | None = None) -> str:
    """A section's blocks; `shown`: the pictures that there are, by name, as Markdown."""
    several = sum(isinstance(block, Table) for block in blocks) > 1
    parts = [part for block in blocks for part in _block(block, shown or {}, captions=several)]
    return "\n\n".join(part for part in parts if part)


def markdown_table(table: Table) -> str:
    """A table as GitHub shows it; its caption is left to the text around."""
    heads = [inline(column.title) for column in table.columns]
    rules = ["---:" if column.kind == "number" else "---" for column in table.columns]
    lines = [heads, rules]
    for place, row in enumerate(table.rows):
        cells = [_set(cell, column) for cell, column in zip(row, table.columns, strict=True)]
        if table.links and (link := table.links[place]):
            cells[0] = f"[{cells[0]}]({link})"
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _block(block: Block, shown: Mapping[str, str], *, captions: bool) -> list[str]:
    match block:
        case Paragraph(text):
            return [sentence(text)]
        case Table(caption):
            return [f"{sentence(caption)}:" if captions else "", markdown_table(block)]
        case Code(label, text, language):
            return [sentence(label), fenced(text, language)]
        case Figure(name, bars):
            return [shown.get(name, ""), fenced(bars) if bars else ""]
        case Completions(prompt, dense, pruned):
            texts = (("Prompt:", prompt), ("Dense:", dense), ("Pruned:", pruned))
            return [part for label, text in texts for part in (label, fenced(text))]


def _mark(verdict: str) -> str:
    """Says what is not a plain pass: a message reads the same in a hurry."""
    return "" if verdict == "passed" else f"**{verdict}**: "


def _picture(picture: Picture) -> str:
    """The PNG, which every viewer shows; behind it the SVG, which can be enlarged and searched."""
    words = sentence(picture.description.replace("[", "(").replace("]", ")"))
    return f"[![{words}]({picture.name}.png)]({picture.name}.svg)"


def _set(cell: str, column: Column) -> str:
    if column.kind == "code":
        return code_cell(cell)
    text = inline(cell)
    return f"**{text}**" if column.kind == "verdict" and text not in _WELL else text
