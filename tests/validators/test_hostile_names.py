# SPDX-License-Identifier: Apache-2.0
"""Reports of hostile names: everybody's text is shown as it is, and nothing else happens."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from pathlib import Path

from markdown_it import MarkdownIt
from rich.console import Console

from prunec.validators.card import measured_section
from prunec.validators.html import html
from prunec.validators.report import write_report
from prunec.validators.results import Report
from prunec.validators.sections import sections
from prunec.validators.tables import render_table

#: Of a page of ours; pictures and links are those that lie beside it.
MADE = {"h1", "h2", "h3", "p", "ul", "li", "strong", "code", "pre", "a", "img"}
MADE |= {"table", "thead", "tbody", "tr", "th", "td"}


def tags(rendered: str) -> set[str]:
    return set(re.findall(r"<(\w+)", rendered))


def test_markdown_shows_names_as_names(hostile_report: Report, tmp_path: Path) -> None:
    write_report(hostile_report, tmp_path)
    text = (tmp_path / "report.md").read_text("utf-8")
    renderer = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    for written in (text, measured_section(hostile_report)):
        rendered = renderer.render(written)
        assert tags(rendered) <= MADE
        assert set(re.findall(r'(?:src|href)="(.*?)"', rendered)) <= {
            *(f"{name}.{kind}" for name in _pictures(tmp_path) for kind in ("svg", "png"))
        }
        assert "<em>" not in rendered and "<del>" not in rendered
        assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", written)
    titles = re.findall("<h2>(.*?)</h2>", renderer.render(text))
    assert titles == [section.title for section in sections(hostile_report)]


def _pictures(folder: Path) -> list[str]:
    return [path.stem for path in folder.glob("*.svg")]


def test_pictures_take_no_name_for_a_formula(hostile_report: Report, tmp_path: Path) -> None:
    write_report(hostile_report, tmp_path)
    for path in tmp_path.glob("*.svg"):
        text = path.read_text("utf-8")
        ET.fromstring(text)  # a control character would be no XML
        assert "<script" not in text and "<img" not in text
    assert "frac{1}" in (tmp_path / "tasks.svg").read_text("utf-8")


def test_html_shows_names_as_names(hostile_report: Report) -> None:
    page = html(hostile_report)
    assert "<script" not in page and "<img src=x" not in page and "49'" not in page
    assert "&lt;script&gt;" in page and "[key]" in page and "{{7*7}}" in page


def test_junit_is_xml_whatever_the_names(hostile_report: Report, tmp_path: Path) -> None:
    write_report(hostile_report, tmp_path)
    root = ET.parse(tmp_path / "junit.xml").getroot()
    assert len(list(root.iter("testcase"))) == len(hostile_report.gates)


def test_a_terminal_shows_names_and_obeys_none(hostile_report: Report) -> None:
    console = Console(file=io.StringIO(), width=200, color_system=None)
    render_table(hostile_report, console, Path("[out]"))
    assert isinstance(console.file, io.StringIO)
    written = console.file.getvalue()
    assert "[key]" in written and "[out]" in written
    assert "\x1b" not in written and "\u202e" not in written
