# SPDX-License-Identifier: Apache-2.0
"""report.html as its text: whole, escaped, of one piece, and well ordered for those who hear it."""

from __future__ import annotations

import base64
import itertools
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from prunec.validators.html import html
from prunec.validators.results import Report

VOID = ("meta", "link", "source", "img", "path")


class Reader(HTMLParser):
    """The elements of a page in order, each with its attributes and the text up to the next tag."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag, _, texts in self.elements[-1:]:
            if tag not in ("style",):
                texts.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes, _ in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(texts) for _, _, texts in self.elements)


@pytest.fixture(scope="module")
def text(full_report: Report) -> str:
    return html(full_report)


@pytest.fixture(scope="module")
def page(text: str) -> Reader:
    return Reader(text)


def test_what_models_and_recipes_say_is_text_and_never_markup(page: Reader) -> None:
    assert not page.all("script")
    for said in ("quick<script>alert(1)", "</pre><script>alert(2)", "# <script>alert(3)"):
        assert said in page.text
    assert "it <raised>" in page.text


def test_the_page_is_one_file_that_loads_and_runs_nothing(text: str, page: Reader) -> None:
    [policy] = [m["content"] for m in page.all("meta") if "content" in m and "http-equiv" in m]
    assert policy.startswith("default-src 'none'")
    links = [a["href"] for a in page.all("a") + page.all("link")]
    assert all(link.startswith(("#", "data:")) for link in links)
    images = [i["src"] for i in page.all("img")] + [s["srcset"] for s in page.all("source")]
    assert all(image.startswith("data:image/svg+xml;base64,") for image in images)
    assert "url(" not in text and "@import" not in text


def test_each_picture_is_there_for_both_themes_for_phones_and_in_words(page: Reader) -> None:
    gists = [image["alt"] for image in page.all("img")]
    words = ["Dropped whole", "of 6 trials", "falls from", "0.4000 at its lowest"]
    words += ["prose 2.850 (2.610 … 3.110)", "not measured", "1.440"]
    for word, gist in zip(words, gists, strict=True):
        assert word in gist
    sources = page.all("source")
    assert len(sources) == 3 * len(gists)
    assert all(source["media"].startswith("screen and ") for source in sources)  # paper is light
    for image in (page.all("img")[0]["src"], *(source["srcset"] for source in sources)):
        root = ET.fromstring(base64.b64decode(image.partition(",")[2]))
        assert root.tag.endswith("svg")


def test_those_who_hear_the_page_find_their_way(page: Reader) -> None:
    assert page.all("html") == [{"lang": "en"}]
    for landmark in ("header", "nav", "main", "footer", "h1", "title"):
        assert len(page.all(landmark)) == 1
    levels = [int(tag[1]) for tag, _, _ in page.elements if re.fullmatch(r"h\d", tag)]
    steps = [later - earlier for earlier, later in itertools.pairwise(levels)]
    assert levels[0] == 1 and max(steps) == 1
    identities = [a["id"] for _, a, _ in page.elements if "id" in a]
    assert len(identities) == len(set(identities))
    for _, attributes, _ in page.elements:
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in identities
    assert {a["href"].removeprefix("#") for a in page.all("a")} <= set(identities)
    assert len(page.all("caption")) == len(page.all("table"))
    assert {head["scope"] for head in page.all("th")} == {"row", "col"}


def test_the_verdict_comes_first_and_the_worst_gates_before_the_others(page: Reader) -> None:
    words = ("Failed", "Of 4 gates", "perplexity ratio 2.41", "perplexity ratio on prose", "bytes")
    places = [page.text.index(word) for word in words]
    assert places == sorted(places)


def test_sections_are_there_for_what_was_measured_only(full_report: Report) -> None:
    bare = replace(full_report, tasks=(), speeds=(), footprints=(), parities=(), search=None)
    page = Reader(html(bare))
    links = [link["href"] for link in page.all("a")]
    for absent in ("#tasks", "#speed", "#footprint", "#parity-of-the-exports", "#search"):
        assert absent not in links
    assert "#texts" in links


def test_the_same_report_gives_the_same_page(text: str, full_report: Report) -> None:
    assert html(full_report) == text
