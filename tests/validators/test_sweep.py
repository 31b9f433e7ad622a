# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from rich.console import Console

from prunec.validators.gates import judge
from prunec.validators.measurements import Estimate
from prunec.validators.picture_of_front import draw_front
from prunec.validators.results import Report, SearchResult
from prunec.validators.sweep import SweepPoint, SweepResult
from prunec.validators.sweep_axes import PARAMETERS
from prunec.validators.sweep_report import render_sweep, write_sweep
from prunec.validators.themes import DARK

Make = Callable[..., SweepPoint]


@pytest.fixture
def point(full_report: Report) -> Make:
    """A point of a name, millions of parameters and a perplexity ratio; it passes up to 2."""

    def make(name: str, millions: float, ratio: float, speedup: float = math.nan) -> SweepPoint:
        assert full_report.perplexity is not None
        estimate = Estimate(ratio, 0.98 * ratio, 1.02 * ratio, 255, "windows")
        gate = judge(
            "perplexity.max_ratio", "ratio", estimate, 2.0, "<=", inconclusive_passes=False
        )
        timed = Estimate(speedup, 0.97 * speedup, 1.03 * speedup, 9, "pairs")
        report = replace(
            full_report,
            pruned=replace(full_report.pruned, parameters=round(1e6 * millions)),
            perplexity=replace(full_report.perplexity, ratio=estimate),
            gates=(gate,),
            speeds=(replace(full_report.speeds[0], speedup=timed),),
        )
        return SweepPoint(f"key={name}", f"key={name}", report, settings={"key": name})

    return make


def names(points: tuple[SweepPoint, ...]) -> list[str]:
    return [point.name for point in points]


def sweep(*points: SweepPoint) -> SweepResult:
    return SweepResult("tiny", "prunec sweep tiny --set key=a,b", points)


def test_the_front_is_what_nothing_else_beats(point: Make) -> None:
    result = sweep(
        point("small", 1, 3.0),
        point("beaten in both", 3, 2.5),
        point("beaten in one", 2, 1.9),
        point("middle", 2, 1.5),
        point("twin", 2, 1.5),
        point("large", 4, 1.1),
        point("not a number", 0.5, math.nan),
        SweepPoint("key=broken", "key=broken", None, "no memory"),
    )
    assert names(result.front()) == ["small", "middle", "twin", "large"]


def test_a_speed_has_a_front_of_its_own(point: Make) -> None:
    result = sweep(point("a", 2, 1.5, 1.2), point("b", 3, 1.2, 1.3), point("c", 1, 1.9, 1.6))
    assert names(result.front()) == ["c", "a", "b"]
    [parameters, speed] = result.axes
    assert parameters is PARAMETERS and speed.key == "speed.hf.decode.batch_1"
    assert names(result.front(speed)) == ["b", "c"]  # a is both slower and worse than b
    assert [axis.key for axis in sweep(point("a", 2, 1.5)).axes] == ["parameters"]


def test_the_best_is_the_smallest_that_passes(point: Make) -> None:
    points = [point("a", 3, 1.1), point("b", 2, 1.9), point("c", 2, 1.6), point("d", 1, 2.5)]
    result = sweep(*points)
    assert names(result.passing) == ["a", "b", "c"]
    assert result.best is points[2]
    assert result.sentence.startswith("Best that passes: key=c, with 2.00 M parameters (28.8 %")
    assert result.verdict == "passed"
    assert sweep(point("edge", 1, 2.0)).verdict == "inconclusive"
    failed = sweep(points[3])
    assert failed.best is None and failed.sentence == "No point passes all its gates."
    assert failed.verdict == "failed"


def test_what_was_not_judged_is_not_called_the_best(point: Make) -> None:
    judged = point("a", 3, 1.1)
    assert judged.report is not None
    result = sweep(replace(judged, report=replace(judged.report, gates=())))
    assert result.best is None and result.verdict == "measured"
    assert "no gates" in result.sentence


def test_quality_is_what_was_measured_of_it(point: Make) -> None:
    made = point("a", 3, 1.1).report
    assert made is not None and isinstance(made.search, SearchResult)

    def key(report: Report) -> str | None:
        quality = sweep(SweepPoint("key=a", "a", report)).quality
        return quality.key if quality else None

    assert key(made) == "perplexity.ratio"
    homeless = replace(made, perplexity=None)
    assert key(homeless) == "elsewhere.prose.ratio"
    one_task = replace(homeless, elsewhere={}, tasks=made.tasks[:1])
    assert key(one_task) == "tasks.recovery"
    # A mean of those tasks that happened to work is no mean of all.
    assert key(replace(one_task, tasks=made.tasks)) == "search.divergence"
    assert key(replace(one_task, tasks=(), search=None)) is None


def test_sweep_json_holds_every_point(point: Make) -> None:
    broken = SweepPoint("key=x", "key=x", None, "no memory", {"key": "x"})
    result = sweep(point("a", 3, 1.1, 1.2), point("b", 2, math.nan), broken)
    content = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert content["schema_version"] == 1
    assert (content["best"], content["passing"]) == ("key=a", ["key=a"])
    assert content["quality"] == "perplexity.ratio"
    assert content["fronts"] == {"parameters": ["key=a"], "speed.hf.decode.batch_1": ["key=a"]}
    first, second, last = content["points"]
    assert (first["verdict"], first["folder"]) == ("passed", "key=a")
    assert first["pruned"]["parameters"] == 3_000_000
    assert first["numbers"]["speed.hf.decode.batch_1"]["value"] == 1.2
    assert second["numbers"]["perplexity.ratio"]["value"] is None
    assert (last["verdict"], last["error"]) == ("not built", "no memory")


class _Page(HTMLParser):
    """The links of a page, and everything that it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "a":
            self.links.append(given["href"])
        self.loaded += [given[name] for name in ("src", "srcset") if name in given]


def test_the_page_leads_to_the_reports_and_loads_nothing(point: Make, tmp_path: Path) -> None:
    odd = replace(point("<b>é</b>", 2, 1.9), folder="key=-b-é-b-")
    write_sweep(sweep(point("a", 3, 1.1), odd), tmp_path)
    text = (tmp_path / "sweep.html").read_text("utf-8")
    page = _Page()
    page.feed(text)
    reports = [unquote(link) for link in page.links if link.endswith("report.html")]
    assert reports == ["key=a/report/report.html", "key=-b-é-b-/report/report.html"]
    assert page.loaded and all(source.startswith("data:") for source in page.loaded)
    assert "<b>" not in text and "Best that passes: key=&lt;b&gt;" in text
    written = (tmp_path / "sweep.md").read_text("utf-8")
    assert written.startswith("# Passed: tiny, best at key=")
    assert "[a](key%3Da/report/report.html)" in written
    assert "(front.png)](front.svg)" in written
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    console = Console(file=io.StringIO(), width=100, color_system=None)
    render_sweep(sweep(point("a", 3, 1.1), odd), console, tmp_path)
    assert str(tmp_path / "sweep.html") in console.file.getvalue().replace("\n", "")  # type: ignore[attr-defined]


def test_labels_lie_neither_on_points_nor_on_each_other(point: Make) -> None:
    crowd = [
        point(f"point {number}", 2 + 0.03 * number, 1.9 - 0.05 * number) for number in range(9)
    ]
    figure = draw_front(sweep(*crowd), DARK, 3.3)
    figure.draw_without_rendering()
    [panel] = figure.axes
    boxes = {
        text.get_text(): text.get_window_extent()
        for text in panel.texts
        if not text.get_text().startswith("gate")
    }
    best = [name for name in boxes if "the best that passes" in name]
    assert len(best) == 1 and len(boxes) >= 5
    overlaps = [
        (one, other)
        for one in boxes
        for other in boxes
        if one < other and boxes[one].overlaps(boxes[other])
    ]
    assert overlaps == []


def test_the_picture_says_what_passes_without_colour(point: Make) -> None:
    figure = draw_front(sweep(point("a", 5, 1.1), point("b", 3, 1.9), point("c", 1, 9.0)))
    [panel] = figure.axes
    assert panel.get_yscale() == "log"
    shown = {text.get_text() for text in panel.texts}
    assert shown == {"a", "b: the best that passes", "c", "dense", "gate: 2"}
    [legend] = figure.legends
    said = {text.get_text() for text in legend.get_texts()}
    assert said == {"passes its gates", "fails", "Pareto front"}
    markers = {line.get_marker() for line in panel.get_lines() if line.get_marker() != "None"}
    assert markers == {"o", "s", "+"}


def test_a_sweep_without_a_front_has_no_picture(tmp_path: Path) -> None:
    (tmp_path / "front.png").write_text("of an earlier sweep")
    broken = SweepPoint("key=x", "key=x", None, "no memory", {"key": "x"})
    paths = write_sweep(sweep(broken), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in paths}
    assert not any(path.name.startswith("front") for path in paths)
    content = json.loads((tmp_path / "sweep.json").read_text("utf-8"))
    assert content["sentence"] == "None of the points could be built."
