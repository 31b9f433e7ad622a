# SPDX-License-Identifier: Apache-2.0
"""report.html: one file that needs no network and no script, for screens, paper and ears.

Every text is escaped, and the page forbids itself to load or to run anything.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup, escape

from prunec.validators.blocks import Figure, Section
from prunec.validators.pictures import COLUMN, PHONE, Picture, pictures_of
from prunec.validators.sections import sections
from prunec.validators.themes import DARK, LIGHT
from prunec.validators.units import printable
from prunec.validators.verdicts import removed, verdict, verdict_sentence

if TYPE_CHECKING:
    from prunec.validators.results import Report

_MANNERS = {
    "passed": "good",
    "same": "good",
    "failed": "bad",
    "differs": "bad",
    "not compared": "bad",
    "not built": "bad",
    "inconclusive": "open",
}
_URGENT = ("failed", "inconclusive", "passed")
_SANS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True)
class Page:
    """A page to be set: the verdict and what led to it, then sections.

    title: of the document; eyebrow: the line above the heading; verdict: a word that the heading
    begins with, or none; lede: sentences under it; findings: pairs of a verdict and its sentence;
    pictures: those that the sections' figures name; generator: what wrote the page
    """

    title: str
    eyebrow: str
    verdict: str
    name: str
    lede: Sequence[str]
    findings: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    pictures: Sequence[Picture]
    generator: str


@dataclass(frozen=True)
class _Image:
    """A picture as data URIs, for both themes and for columns and phones."""

    description: str
    light: str
    dark: str
    phone: str
    dark_phone: str


def html(report: Report) -> str:
    """The text of report.html, all its pictures inside."""
    word = verdict(report)
    by = f" by {report.method}" if report.method not in ("", "given") else ""
    by += f", seed {report.seed}" if by and report.seed is not None else ""
    return set_page(
        Page(
            title=f"{word.capitalize()}: {report.recipe} – prunec report",
            eyebrow="prunec report",
            verdict=word,
            name=report.recipe,
            lede=(f"{removed(report)}{by}. {verdict_sentence(report)}",),
            findings=[
                (gate.verdict, gate.message)
                for gate in sorted(report.gates, key=lambda gate: _URGENT.index(gate.verdict))
            ],
            sections=sections(report),
            pictures=pictures_of(report),
            generator=f"prunec {report.prunec_version}",
        )
    )


def set_page(page: Page) -> str:
    """The page as HTML; pictures that no section names are not drawn."""
    named = {
        block.name
        for section in page.sections
        for block in section.blocks
        if isinstance(block, Figure)
    }
    return _template().render(
        page=page,
        css=Markup((Path(__file__).parent / "page.css").read_text("utf-8")),
        images={
            picture.name: _image(picture) for picture in page.pictures if picture.name in named
        },
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": printable, "prose": _prose, "slug": _slug}
    environment.globals["manner_of"] = lambda word: _MANNERS.get(str(word), "")
    return environment.get_template("page.html.j2")


def _prose(text: str) -> Markup:
    """A sentence, well set; what it has between backticks is code."""
    parts = re.split(r"`([^`]+)`", printable(text))
    words = [escape(_set_words(part)) for part in parts]
    words[1::2] = [Markup("<code>{}</code>").format(part) for part in parts[1::2]]
    return Markup("").join(words)


def _set_words(text: str) -> str:
    """Apostrophes, and spaces at which no line ends: before a % and around the … of an interval."""
    text = re.sub(r"(?<=\w)'(?=\w)", "\N{RIGHT SINGLE QUOTATION MARK}", text)
    return re.sub(r"(?<=\d) (?=[%…])|(?<=…) (?=\S)", "\N{NO-BREAK SPACE}", text)


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _image(picture: Picture) -> _Image:
    def drawn(*, dark: bool, width: float) -> str:
        svg = picture.svg(DARK if dark else LIGHT, width, _SANS)
        return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")

    return _Image(
        picture.description,
        light=drawn(dark=False, width=COLUMN),
        dark=drawn(dark=True, width=COLUMN),
        phone=drawn(dark=False, width=PHONE),
        dark_phone=drawn(dark=True, width=PHONE),
    )
