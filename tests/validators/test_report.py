# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from prunec.validators import sections_of_quality
from prunec.validators.blocks import Paragraph, Table
from prunec.validators.gates import judge
from prunec.validators.html import html
from prunec.validators.markdown import markdown
from prunec.validators.measurements import Estimate, PerplexityResult
from prunec.validators.pictures import PICTURE_FILES
from prunec.validators.report import (
    CompletionResult,
    Cost,
    Divergence,
    Report,
    SearchPoint,
    SearchResult,
    StepCost,
    SurrogateResult,
    append_step_summary,
    render_table,
    write_report,
)
from prunec.validators.verdicts import verdict


def read(folder: Path) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads((folder / "report.json").read_text("utf-8"), parse_constant=refuse)


def test_report_json_holds_what_users_are_promised(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path / "report")
    content = read(tmp_path / "report")
    assert content["schema_version"] == 2
    assert content["passed"] is True
    assert (content["recipe"], content["method"], content["seed"]) == ("quickstart", "tyr", 0)
    assert content["dense"] == {
        "parameters": 6_951_168,
        "prunable_parameters": 5_898_240,
        "bytes": 13_909_512,
        "kv_bytes_per_token": 4096,
    }
    assert content["pruned"]["sparsity"] == 0.5
    assert content["perplexity"] | {"pruned_estimate": None, "divergence": None} == {
        "dense": 11.5,
        "pruned": 27.715,
        "pruned_estimate": None,
        "ratio": {
            "value": 2.41,
            "low": 2.35,
            "high": 2.47,
            "count": 255,
            "unit": "windows",
            "level": 0.95,
        },
        "divergence": None,
        "tokens": 65_280,
        "source": "python_stdlib",
        "undiverged": None,
        "reading": "",
    }
    assert set(content["completion"]) == {"prompt", "dense", "pruned"}
    assert content["cost"]["steps"][0] == {"name": "gram", "seconds": 12.0, "reused": True}
    assert {"token_forwards", "seconds", "peak_rss_bytes"} < set(content["cost"])
    assert content["layers"] == list(report.layers)
    assert content["search"]["divergence"] == {"uniform": 0.9, "winner": 0.6}
    assert content["search"]["history"][1]["token_forwards"] == 2000
    assert content["gates"][0]["name"] == "perplexity.max_ratio"
    assert {"measured", "threshold", "passed", "message"} < set(content["gates"][0])
    assert content["artefacts"] == {"hf": "hf"}
    assert content["versions"]["torch"] == "2.13.0"
    assert content["prunec_version"] == "0.1.0"


def test_what_is_not_finite_is_null_in_json_and_said_in_words(
    report: Report, tmp_path: Path
) -> None:
    nan = Estimate.unknown("windows")
    broken = PerplexityResult(11.5, math.nan, nan, nan, nan, 65_280, "python_stdlib")
    gate = judge(
        "perplexity.max_ratio", "perplexity ratio", nan, 3.0, "<=", inconclusive_passes=False
    )
    report = replace(report, perplexity=broken, gates=(gate,))
    write_report(report, tmp_path)
    content = read(tmp_path)
    assert content["passed"] is False
    assert content["perplexity"]["pruned"] is None
    assert content["perplexity"]["ratio"]["low"] is None
    text = (tmp_path / "report.md").read_text("utf-8")
    assert text.startswith("# Failed: quickstart")
    assert "| perplexity | 11.50 | not finite | not finite |" in text
    assert "perplexity ratio was not measured" in text


def test_report_md_gives_the_verdict_first_then_the_numbers(report: Report) -> None:
    text = markdown(report)
    lines = text.splitlines()
    assert lines[0] == "# Passed: quickstart, 50.0 % of the prunable parameters removed"
    assert lines[2] == "The gate passed."
    assert lines[4] == "- perplexity ratio 2.41 (95 %: 2.35 … 2.47) is within 3.0"
    for row in (
        "| parameters | 6.95 M | 4.00 M | 0.576 |",
        "| prunable parameters | 5.90 M | 2.95 M | 0.500 |",
        "| weight files | 13.3 MiB | 7.64 MiB | 0.576 |",
        "| KV cache per token | 4.00 KiB | 1.50 KiB | 0.375 |",
        "| perplexity | 11.50 | 27.71 | 2.410 |",
        "| `perplexity.max_ratio` | 2.4100 | 2.3500 … 2.4700 | ≤ 3.0 | passed |",
        "| 0 | 2 | 2,000 | 0.6000 |",
        "| gram | 12.0 s | reused |",
    ):
        assert row in lines
    assert "95 % interval of the ratio 2.350 … 2.470" in text
    assert "4 min 12 s, 2,000,123 token-forwards, peak memory 1.40 GiB." in lines
    assert (
        'AutoModelForCausalLM.from_pretrained("hf", trust_remote_code=True, dtype="auto")' in text
    )


def test_the_layer_picture_shows_shares_of_the_dense_model(report: Report) -> None:
    report = replace(report, layers=[report.layers[0], {**report.layers[1], "ffn": 2}])
    lines = markdown(report).splitlines()
    first, second = lines[lines.index("```") + 2 :][:2]
    half, none, trace = "█" * 8 + "·" * 8, "·" * 16, "▏" + "·" * 15
    assert first == f"    0  {half} 4/8  {half} 2/4  {half} 352/704"
    assert second == f"    1  {none} 0/8  {none} 0/4  {trace}   2/704"


def test_a_completion_cannot_end_its_code_block(report: Report) -> None:
    assert "````\ndef f(``` |\n````\n" in markdown(report)


def test_a_report_without_the_optional_parts_is_whole(report: Report, tmp_path: Path) -> None:
    bare = replace(
        report,
        gates=(),
        layers=[],
        dense_layers=[],
        perplexity=None,
        completion=None,
        search=None,
        artefacts={},
    )
    write_report(bare, tmp_path)
    content = read(tmp_path)
    assert content["passed"] is True
    assert content["perplexity"] is content["completion"] is content["search"] is None
    text = (tmp_path / "report.md").read_text("utf-8")
    assert text.startswith("# Measured: quickstart")  # nothing was judged
    assert "Perplexity was not measured." in text


def test_a_rewritten_report_replaces_all_files_and_leaves_nothing_else(
    report: Report, tmp_path: Path
) -> None:
    (tmp_path / ".report.json.partial").write_text("what a killed run left")
    write_report(report, tmp_path)
    write_report(replace(report, recipe="second"), tmp_path)
    absent = ("tuning", "recovery", "tasks", "speed")
    assert {path.name for path in tmp_path.iterdir()} == {
        *("report.json", "report.md", "report.html", "junit.xml"),
        *(name for name in PICTURE_FILES if not name.startswith(absent)),
    }
    assert read(tmp_path)["recipe"] == "second"
    write_report(replace(report, search=None), tmp_path)
    left = {path.stem for path in tmp_path.iterdir()}
    assert left == {"report", "junit", "layers", "texts"}


def test_an_unchanged_file_is_not_written_again(report: Report, tmp_path: Path) -> None:
    # Builds are interrupted: each try must get further than the one before.
    paths = write_report(report, tmp_path)
    before = [path.stat().st_ino for path in paths]
    assert [path.stat().st_ino for path in write_report(report, tmp_path)] == before


def test_report_md_shows_the_pictures_and_says_them_in_words(
    report: Report, tmp_path: Path
) -> None:
    write_report(report, tmp_path)
    text = (tmp_path / "report.md").read_text("utf-8")
    for name, gist in {"layers": "Dropped whole: attention of layer 1", "search": "falls"}.items():
        [(words, *links)] = re.findall(rf"\[!\[(.*?)\]\(({name}\..*?)\)\]\((.*?)\)", text)
        assert gist in words
        assert all((tmp_path / link).is_file() for link in links)


def test_the_surrogate_of_each_round_is_judged(report: Report) -> None:
    search = SearchResult(
        Divergence(0.9, 0.5),
        (SearchPoint(1, 3, 1000, 0.6), SearchPoint(2, 1, 2000, 0.55), SearchPoint(3, 1, 3000, 0.5)),
        (SurrogateResult(1, 0.912, 24), SurrogateResult(2, None, 8, "all probes measured alike")),
    )
    report = replace(report, search=search)
    lines = markdown(report).splitlines()
    assert "| 1 | 3 | 1,000 | 0.6000 | 24 | 0.91 |" in lines
    assert "| 2 | 1 | 2,000 | 0.5500 | 8 | not measured |" in lines
    assert "| 3 | 1 | 3,000 | 0.5000 |  |  |" in lines
    fallback = "Round 2 went on without its surrogate: all probes measured alike."
    assert fallback in lines
    assert report.as_dict()["search"]["surrogates"][1]["fell_back"] == "all probes measured alike"
    console = Console(file=io.StringIO(), width=100, color_system=None)
    render_table(report, console)
    assert fallback in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_step_summary_is_appended_only_where_ci_asks_for_it(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    append_step_summary(report)
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    append_step_summary(report)
    assert summary.read_text("utf-8").startswith("before\n# Passed: quickstart")
    assert "![" not in summary.read_text("utf-8")  # there is no folder beside it


def test_the_terminal_shows_both_models_the_gate_and_the_place(
    report: Report, tmp_path: Path
) -> None:
    odd = CompletionResult("a", "a[bold]b", "a\x1b[2J")
    console = Console(file=io.StringIO(), width=100, color_system=None)
    render_table(replace(report, completion=odd), console, tmp_path)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for text in ("6.95 M", "4.00 M", "0.576", "13.3 MiB", "4.00 KiB", "11.50", "27.71", "2.410"):
        assert text in shown
    assert "passed perplexity ratio 2.41 (95 %: 2.35 … 2.47) is within 3.0" in shown
    assert str(tmp_path / "hf") in shown
    assert "a[bold]b" in shown  # a model's text is no markup
    assert "\x1b" not in shown  # and no terminal command


def test_every_measurement_is_in_the_markdown_with_how_sure_it_is(full_report: Report) -> None:
    lines = markdown(full_report).splitlines()
    assert lines[0].startswith("# Failed: quick\\<script>")
    assert "Of 4 gates, 2 passed, 1 failed, 1 inconclusive." in lines[2]
    for row in (
        "| python_stdlib | 65,280 | 11.50 | 27.71 | 2.410 | 2.350 … 2.470 "
        "| 0.8213 | 0.8107 … 0.8322 |",
        "| prose (a file) | 16,320 | 310.20 | 884.07 | 2.850 | 2.610 … 3.110 "
        "| 1.0210 | 0.9500 … 1.0900 |",
        "| python_names | 0.550 | 0.270 | −0.280 | −0.340 … −0.220 | 0.491 | 0.380 … 0.600 "
        "| 0.280 |",
        "| broken | – | – | – | – | – | – |  |",
        "In all rows: backend hf, metric acc, items 300.",
        "python_names (hf): the pruned model scores no better than one answer given always.",
        "broken (hf) was not measured: it \\<raised>.",
        "| hf | 1 | 91.4 | 132 | 1.440 | 1.390 … 1.490 | 10.9 ms | 7.6 ms |",
        "vllm, prefill, batch 8 was not measured: no engine.",
        "| hf | 13.9 MiB | 8.39 MiB | 0.603 | – | 58.2 MiB | – |",
        "| onnx | 4.4e-05 | 0.001 | 96 of 96 | same |",
        "| vllm | – | 0.001 | – | **not compared** |",
        "| cores | 2 |",
        "prunec build quickstart.yaml",
    ):
        assert row in lines
    [_, head] = [line for line in lines if line.startswith("| runtime | batch | dense, tokens/s")]
    assert "99.6 % interval" in head  # that of these pairs, not a wish


def test_a_gate_that_settles_nothing_is_said_to_be_inconclusive(full_report: Report) -> None:
    open_gate = full_report.gates[1]
    assert verdict(replace(full_report, gates=(open_gate,))) == "inconclusive"
    lenient = replace(full_report, gates=(replace(open_gate, passed=True),))
    assert verdict(lenient) == "passed"
    assert "The recipe lets inconclusive gates pass." in markdown(lenient)
    assert "- **inconclusive**: perplexity ratio on prose" in markdown(lenient)


def test_the_terminal_shows_what_was_measured_on_80_columns(full_report: Report) -> None:
    console = Console(file=io.StringIO(), width=80, color_system=None)
    render_table(full_report, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for text in ("prose (a file)", "2.850", "python_names", "−0.280", "1.440", "58.2 MiB", "same"):
        assert text in shown
    assert "inconclusive perplexity ratio on prose" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_only_what_is_known_is_said(report: Report) -> None:
    """Of builds, of models that others made, of methods that draw nothing."""
    built, home = markdown(report), report.perplexity
    assert home is not None
    assert "To load it, from the build's folder:" in built
    assert "counts as it did then" in built  # a step was reused
    given = replace(
        report,
        method="given",
        seed=None,
        artefacts={"hf": "/models/other"},
        remote_code=False,
        elsewhere={"prose": home},
        pruned=replace(report.pruned, prunable_parameters=6_488_064),
        cost=Cost(0, 1.0, 1, (StepCost("a", 1.0, False),)),
    )
    text, page = markdown(given), html(given)
    assert "Relative to the build" not in text and "from the build's folder" not in text
    assert 'from_pretrained("/models/other", dtype="auto")' in text
    assert "10.0 % more prunable parameters than the dense model" in text
    assert "counts as it did then" not in text and "fitted to, the others are not" not in text
    assert "by given" not in page and "seed" not in page.split("</header>")[0]
    magnitude = html(replace(report, method="magnitude", seed=None)).split("</header>")[0]
    assert "removed by magnitude." in magnitude
    nothing = replace(given.pruned, prunable_parameters=0, kv_bytes_per_token=0)
    quantised = markdown(replace(given, layers=[], dense_layers=[], pruned=nothing))
    assert "projections are not known" in quantised
    assert "100.0 %" not in quantised and "| prunable parameters" not in quantised


def test_a_group_of_tasks_is_a_row_before_its_tasks_with_what_is_above_chance(
    full_report: Report,
) -> None:
    leaf = full_report.tasks[0]
    above = Estimate(0.44, 0.3, 0.6, 300, "items")
    group = replace(
        leaf, task="everything", tasks=("a", "b"), chance=0.25, recovery_above_chance=above
    )
    section = sections_of_quality.tasks(replace(full_report, tasks=(group, leaf)))
    assert section is not None
    [made] = [block for block in section.blocks if isinstance(block, Table)]
    assert [row[0] for row in made.rows] == ["everything (2 tasks)", "python_names"]
    place = [column.title for column in made.columns].index("above chance")
    assert [row[place] for row in made.rows] == ["0.440", ""]
    said = " ".join(block.text for block in section.blocks if isinstance(block, Paragraph))
    assert "The row of a group is of the items of all its tasks together." in said
    assert "what guessing among the choices scores" in said
