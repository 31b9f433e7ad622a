# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from prunec.validators.measurements import Estimate, PerplexityResult
from prunec.validators.picture_of_layers import describe_layers, draw_layers
from prunec.validators.picture_of_scores import describe_texts, draw_tasks, draw_texts
from prunec.validators.picture_of_search import describe_search, draw_search
from prunec.validators.pictures import COLUMN, PHONE, pictures_of
from prunec.validators.report import (
    Cost,
    Divergence,
    ModelSize,
    Report,
    SearchPoint,
    SearchResult,
)
from prunec.validators.themes import DARK, LIGHT, Theme

SEARCH = SearchResult(
    Divergence(0.9, 0.5),
    (
        SearchPoint(1, 0, 1_000, 0.9),
        SearchPoint(1, 1, 5_000, math.inf),
        SearchPoint(1, 2, 9_000, 0.6),
        SearchPoint(2, 0, 10_000, 0.62),
        SearchPoint(2, 1, 18_000, 0.5),
    ),
)


def layer(query_heads: int, kv_heads: int, ffn: int) -> dict[str, Any]:
    return {"query_heads": query_heads, "kv_heads": kv_heads, "ffn": ffn}


def report_of(
    layers: list[dict[str, Any]],
    dense: list[dict[str, Any]],
    search: SearchResult | None = None,
) -> Report:
    size = ModelSize(2, 1, 4, 8)
    return Report("0", "r", "tyr", 0, size, size, dense, layers, Cost(1, 1.0, 1), search=search)


def texts_in(svg: bytes) -> list[str]:
    """What an SVG says, as text."""
    root = ET.fromstring(svg)
    return [
        "".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")
    ]


@pytest.mark.parametrize(("count", "numbered"), [(8, "7"), (80, "70")])
def test_the_distribution_names_its_layers_and_what_they_keep(count: int, numbered: str) -> None:
    layers, dense = [layer(4, 2, 352), *[layer(8, 4, 1000)] * (count - 1)], [layer(8, 4, 1000)]
    [picture] = pictures_of(report_of(layers, dense * count))  # there was no search
    files = picture.files()
    said = texts_in(files["layers.svg"])
    assert f"query heads: {8 * count - 4:,} of {8 * count:,}" in said
    assert f"KV heads: {4 * count - 2:,} of {4 * count:,}" in said
    assert f"FFN width: {1000 * count - 648:,} of {1000 * count:,}" in said
    assert numbered in said  # the last layer that has a number
    assert "dropped whole" not in said
    assert files["layers.png"].startswith(b"\x89PNG")


def test_the_bars_are_shares_of_each_layer_and_a_dropped_sublayer_is_none() -> None:
    layers = [layer(4, 2, 0), layer(0, 0, 25)]
    figure = draw_layers(layers, [layer(8, 4, 100), layer(8, 4, 50)])
    bars = [cast("list[Rectangle]", panel.patches) for panel in figure.axes]
    heights = [[bar.get_height() for bar in panel] for panel in bars]
    # Grey for what there was, colour for what stays, hatching for what was dropped.
    assert heights == [[100, 100, 50, 0, 100], [100, 100, 50, 0, 100], [100, 100, 0, 50, 100]]
    dropped = [panel[-1] for panel in bars]
    assert [round(bar.get_x() + bar.get_width() / 2) for bar in dropped] == [1, 1, 0]
    words = describe_layers(layers, [layer(8, 4, 100), layer(8, 4, 50)])
    assert "query heads 25 %, from 0 of 8 (layer 1) to 4 of 8 (layer 0)" in words
    assert words.endswith("Dropped whole: attention of layer 1; FFN of layer 0.")


def test_the_curve_is_what_was_measured_and_breaks_between_rounds() -> None:
    lines = draw_search(SEARCH).axes[0].lines
    curves = [line for line in lines if line.get_drawstyle() == "steps-post"]
    rounds = [np.asarray(line.get_xydata()).tolist() for line in curves]
    assert rounds == [[[1_000, 0.9], [9_000, 0.6]], [[10_000, 0.62], [18_000, 0.5]]]
    words = describe_search(SEARCH)
    assert "falls from 0.9000 nats per token, the uniform layout, to 0.5000 in 2 rounds" in words


def test_the_curve_says_units_rounds_and_both_ends() -> None:
    [_, picture] = pictures_of(report_of([layer(1, 1, 1)], [layer(1, 1, 1)], SEARCH))
    said = texts_in(picture.files()["search.svg"])
    for text in ("round 1", "round 2", "token-forwards spent", "uniform layout 0.9000", "0.5000"):
        assert text in said
    assert any("nats per token" in text for text in said)


def test_a_search_that_measured_nothing_has_no_curve() -> None:
    for history in ((), (SearchPoint(1, 0, 1_000, math.nan),)):
        search = SearchResult(Divergence(math.nan, math.nan), history)
        pictures = pictures_of(report_of([layer(1, 1, 1)], [layer(1, 1, 1)], search))
        assert [picture.name for picture in pictures] == ["layers"]


def test_the_same_report_gives_the_same_bytes_whatever_matplotlib_was_told() -> None:
    import matplotlib

    layers = [layer(4, 2, 100), layer(0, 0, 50)]

    def files() -> dict[str, bytes]:
        drawn: dict[str, bytes] = {}
        for picture in pictures_of(report_of(layers, [layer(8, 4, 100)] * 2, SEARCH)):
            drawn |= picture.files()
        return drawn

    first = files()
    with matplotlib.rc_context({"font.size": 20, "svg.hashsalt": None, "axes.facecolor": "red"}):
        assert files() == first
    assert len(first) == 4


def text(ratio: float, low: float, high: float) -> PerplexityResult:
    estimate = Estimate(ratio, low, high, 64, "windows")
    return PerplexityResult(10.0, 10 * ratio, estimate, estimate, estimate, 640, "a file")


def test_bars_begin_at_what_the_dense_model_has() -> None:
    figure = draw_texts([("home", text(1.5, 1.4, 1.6)), ("broken", text(*[math.nan] * 3))])
    ratios, divergences = figure.axes
    for panel, start in ((ratios, 1.0), (divergences, 0.0)):
        [bar] = cast("list[Rectangle]", panel.patches)
        assert (bar.get_x(), bar.get_x() + bar.get_width()) == (start, 1.5)
        whiskers = [np.asarray(line.get_xdata()).tolist() for line in panel.lines]
        assert [1.4, 1.6] in whiskers
        assert "not measured" in [said.get_text() for said in panel.texts]


def test_ratios_far_apart_share_a_logarithmic_axis() -> None:
    texts = [("near", text(1.1, 1.0, 1.2)), ("far", text(40.0, 38.0, 42.0))]
    assert [panel.get_xscale() for panel in draw_texts(texts).axes] == ["log", "linear"]
    assert describe_texts(texts).count("40.000 (38.000 … 42.000)") == 2


def test_a_task_shows_both_scores_the_floor_and_the_paired_difference(full_report: Report) -> None:
    [panel] = draw_tasks(full_report.tasks).axes
    widths = [bar.get_width() for bar in cast("list[Rectangle]", panel.patches)]
    assert widths == [0.55, 0.27]
    lines = [np.asarray(line.get_xdata()).tolist() for line in panel.lines]
    assert [0.28, 0.28] in lines
    assert any(np.allclose(line, [0.55 - 0.34, 0.55 - 0.22]) for line in lines if len(line) == 2)


def test_names_are_no_mathematics_and_long_ones_are_cut(full_report: Report) -> None:
    texts = {r"$\frac{a}{$": text(1.5, 1.4, 1.6), "a word " * 9: text(1.5, 1.4, 1.6)}
    report = replace(full_report, elsewhere=texts)
    [picture] = [picture for picture in pictures_of(report) if picture.name == "texts"]
    said = texts_in(picture.files()["texts.svg"])
    assert r"$\frac{a}{$" in said
    assert ("a word a word a word a" in said) and ("word a word a word a…" in said)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_pictures_for_a_page_have_its_font_its_theme_and_no_panel(
    theme: Theme, full_report: Report
) -> None:
    for picture in pictures_of(full_report):
        for width in (COLUMN, PHONE):
            svg = picture.svg(theme, width, "a, 'b c', serif")
            root = ET.fromstring(svg)
            assert root.get("width") == f"{72 * width:g}pt"
            assert b"DejaVu" not in svg and b"'b c'" in svg
            assert theme.ink.encode() in svg
            backgrounds = re.findall(rb'id="patch_1">\s*<path [^>]*style="([^"]*)"', svg)
            assert all(b"fill: none" in background for background in backgrounds)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_colours_stand_out_from_what_they_lie_on(theme: Theme) -> None:
    for on in (theme.paper, theme.removed, theme.band):
        assert contrast(theme.ink, on) >= 4.5
    assert min(contrast(theme.quiet, on) for on in (theme.paper, theme.band)) >= 4.5
    for hue in (theme.blue, theme.green, theme.orange, theme.axis):
        assert contrast(hue, theme.paper) >= 3
    assert min(contrast(theme.on_hue, hue) for hue in (theme.blue, theme.green)) >= 4.5


def contrast(first: str, second: str) -> float:
    """WCAG 2's contrast ratio of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def test_matplotlib_waits_until_something_is_drawn() -> None:
    code = "import sys, prunec.validators.report; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
