# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from prunec.validators.comparison import compare, render_comparison
from prunec.validators.errors import ValidationError
from prunec.validators.results import Report
from prunec.validators.saved import read_report

Write = Callable[..., Path]


@pytest.fixture
def written(full_report: Report, tmp_path: Path) -> Write:
    """A folder with a report, and a manifest beside it as finished builds have one."""

    def write(name: str, **changes: Any) -> Path:
        folder = tmp_path / name
        (folder / "report").mkdir(parents=True)
        content = replace(full_report, artefacts={}, **changes).as_dict()
        (folder / "report" / "report.json").write_text(json.dumps(content))
        (folder / "manifest.json").write_text("{}")
        return folder

    return write


def values(folders: list[Path]) -> dict[str, list[Any]]:
    rows = compare(folders).as_dict()["rows"]
    return {
        row["key"]: [value["value"] if value else None for value in row["values"]] for row in rows
    }


def test_a_report_reads_back_as_it_was(written: Write, full_report: Report) -> None:
    read = read_report(written("a") / "report" / "report.json")
    assert read.as_dict() == replace(full_report, artefacts={}).as_dict()
    assert read.gates[0] == full_report.gates[0]  # None stays None where that is meant


@pytest.mark.parametrize("damage", ["schema_version", "gates", "pruned", "perplexity"])
def test_what_is_no_report_is_told(damage: str, written: Write) -> None:
    path = written("a") / "report" / "report.json"
    content = json.loads(path.read_text("utf-8"))
    content[damage] = "2"
    path.write_text(json.dumps(content))
    with pytest.raises(ValidationError, match=damage):
        read_report(path)


def test_builds_and_models_stand_side_by_side(
    written: Write, saved_llama: Path, full_report: Report
) -> None:
    folders = [written("a"), written("b", speeds=(), tasks=()), saved_llama]
    found = values(folders)
    assert found["parameters"][:2] == [4_002_048, 4_002_048] and found["parameters"][2] > 0
    assert found["sparsity"] == [0.5, 0.5, None]
    assert found["dtype"] == [None, None, "F32"]
    assert found["layers"] == [2, 2, 2]
    assert found["perplexity.ratio"] == [2.41, 2.41, None]
    assert found["elsewhere.prose.divergence"] == [1.021, 1.021, None]
    assert found["tasks.python_names.hf.recovery"] == [0.491, None, None]
    assert found["speed.hf.decode.batch_1.speedup"] == [1.44, None, None]
    assert found["speed.vllm.prefill.batch_8.speedup"] == [None, None, None]  # it had no engine
    assert found["footprint.hf.bytes"] == [8_800_000, 8_800_000, None]
    assert found["verdict"] == ["failed", "failed", None]
    assert compare(folders).warnings == ()


def test_what_cannot_be_compared_is_said(written: Write, full_report: Report) -> None:
    home, [decode, _] = full_report.perplexity, full_report.speeds
    assert home is not None
    other = written(
        "b",
        perplexity=replace(home, dense=12.0),
        elsewhere={"prose": replace(full_report.elsewhere["prose"], tokens=100)},
        tasks=(replace(full_report.tasks[0], items=30),),
        speeds=(replace(decode, prompt_tokens=512),),
        hardware={"processor": "another", "torch": "3.0"},
    )
    first, *rest = compare([written("a"), other]).warnings
    assert "dense models' perplexity differs" in first and "11.500 of a, 12.000 of b" in first
    text, task, machine, version, tokens = rest
    assert "perplexity on prose was measured on different texts" in text
    assert "python_names (hf) was measured differently" in task
    assert "different hardware" in machine and "b: another" in machine
    assert "speeds in hf" in version and "torch 3.0" in version
    assert "hf decode at batch 1" in tokens and "512 and 64" in tokens


def test_an_unfinished_build_is_said_to_be_one(written: Write) -> None:
    folder = written("a")
    (folder / "manifest.json").unlink()
    [warning] = compare([folder]).warnings
    assert "a has no manifest.json" in warning


def test_columns_are_named_by_what_tells_them_apart(written: Write) -> None:
    comparison = compare([written("one/build"), written("two/build")])
    assert [side.name for side in comparison.sides] == ["one/build", "two/build"]
    console = Console(file=io.StringIO(), width=100, color_system=None)
    render_comparison(comparison, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "one/build" in shown and "2.350 … 2.470" in shown and "not measured" in shown


def test_a_folder_that_is_none_is_refused_with_a_hint(written: Write, tmp_path: Path) -> None:
    written("quickstart")
    with pytest.raises(ValidationError) as caught:
        compare([tmp_path / "quickstarts"])
    assert caught.value.hint == f"did you mean {tmp_path / 'quickstart'}?"
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(ValidationError, match="is a sweep"):
        compare([tmp_path])
