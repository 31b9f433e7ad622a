# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import subprocess
import sys
import xml.etree.ElementTree as ET
from typing import Any, cast

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from prunec.validators.picture_of_layers import describe_layers, draw_layers
from prunec.validators.picture_of_search import describe_search, draw_search
from prunec.validators.pictures import pictures_of
from prunec.validators.report import (
    Cost,
    Divergence,
    ModelSize,
    Report,
    SearchPoint,
    SearchResult,
)

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


def texts(svg: bytes) -> list[str]:
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
    said = texts(files["layers.svg"])
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
    said = texts(picture.files()["search.svg"])
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


def test_matplotlib_waits_until_something_is_drawn() -> None:
    code = "import sys, prunec.validators.report; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
