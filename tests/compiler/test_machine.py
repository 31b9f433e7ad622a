# SPDX-License-Identifier: Apache-2.0
"""Hours of a plan on a machine that was measured."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from prunec.compiler import machine_profiler
from prunec.compiler.diagnostics import UserError
from prunec.compiler.machine import Machine
from prunec.compiler.machine_profiler import profile_machine
from prunec.compiler.plan import Cost, Work
from prunec.compiler.plan_table import render_plan
from prunec.compiler.planned import plan_recipe
from prunec.compiler.subject import subject_for_plan
from prunec.recipes import folder


def test_a_step_takes_as_long_as_each_kind_of_its_work() -> None:
    machine = Machine("m", {}, dict.fromkeys(Work, 10.0) | {Work.READ: 5.0})
    cost = Cost(work={Work.FLOAT64: 36_000, Work.READ: 18_000})
    assert machine.seconds(cost) == pytest.approx(3600.0 + 3600.0)


def test_a_machine_is_measured_written_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"_SIZE": 64, "_TOKENS": 32, "_NARROW": 32, "_WIDE": 64}.items():
        monkeypatch.setattr(machine_profiler, name, value)
    monkeypatch.setattr(machine_profiler, "_FILE_BYTES", 2**25)
    measured = profile_machine("mine", torch.device("cpu"), tmp_path)
    measured.save(tmp_path / "mine.json")
    found = Machine.find(tmp_path / "mine.json")
    assert found == measured
    assert set(found.rates) == set(Work)
    assert found.measured_on["device"] == "cpu"


@pytest.mark.parametrize("path", sorted((folder() / "machines").glob("*.json")))
def test_shipped_machines_are_found_by_name(path: Path) -> None:
    assert Machine.find(Path(path.stem)).name == path.stem


@pytest.mark.parametrize("content", ["", "[]", '{"name": "m"}', '{"rates": {"float64": 0}}'])
def test_what_is_no_machine_is_refused_with_what_measures_one(tmp_path: Path, content: str) -> None:
    with pytest.raises(UserError, match=r"there is no such machine.*\n.*known: epyc"):
        Machine.find(Path("unknown"))
    path = tmp_path / "m.json"
    path.write_text(content)
    with pytest.raises(UserError, match="this is no profile of a machine"):
        Machine.find(path)
    known = json.loads((folder() / "machines" / "epyc-1-thread.json").read_text())
    path.write_text(json.dumps(known | {"rates": known["rates"] | {"float64": 0}}))
    with pytest.raises(UserError, match="this is no profile of a machine"):
        Machine.find(path)


@pytest.mark.parametrize("width", [100, 120])
def test_the_plan_of_a_large_model_is_readable_at_any_width(width: int) -> None:
    settings = ("resources={memory: 20GiB}", "validate.tasks=null", "validate.speed=null")
    planned = plan_recipe(folder() / "llama70b_50.yaml", settings, subject_for_plan)
    written = StringIO()
    machine = Machine.find(Path("epyc-1-thread"))
    console = Console(width=width, file=written)
    render_plan(planned.recipe, planned.subject, planned.plan, console, machine)
    said = written.getvalue()
    assert "placement: hidden states and matrices in files, batches of 8,192 tokens" in said
    heading = next(line for line in said.splitlines() if line.startswith("step"))
    assert all(word in heading for word in ("memory ≈", "disk ≈", "scratch ≈", "time ≈"))
    rows = [line for line in said.splitlines() if line.startswith(("supernet-1", "total"))]
    assert all("GiB" in row and "…" not in row and len(row) <= width for row in rows)
