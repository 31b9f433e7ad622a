# SPDX-License-Identifier: Apache-2.0
"""Results are used again only where they would come out the same: same libraries, same kind of
device, batches of the same size."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from prunec.compiler import build_command, surroundings
from prunec.compiler.diagnostics import BuildError
from prunec.compiler.model.placement import ROOMY, Placement
from prunec.compiler.placing import LADDER, Limits
from prunec.compiler.plan import Cost, Estimate, Plan, Step
from prunec.compiler.planned import plan_recipe
from prunec.compiler.recipe import Resources
from prunec.compiler.store import Store
from prunec.compiler.subject import subject_for_plan
from prunec.recipes import folder

LLAMA = folder() / "llama70b_50.yaml"


def _plan(*settings: str) -> Plan:
    streamed = ["resources={}", "validate.tasks=null", "validate.speed=null"]
    return plan_recipe(LLAMA, [*streamed, *settings], subject_for_plan).plan


def _fingerprints(plan: Plan) -> list[str]:
    return [step.fingerprint for step in plan.steps]


@pytest.mark.parametrize("library", ["torch", "transformers", "tokenizers"])
def test_another_version_of_a_library_makes_every_step_anew(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, real = _fingerprints(_plan()), surroundings._version
    monkeypatch.setattr(
        surroundings, "_version", lambda name: "9.9" if name == library else real(name)
    )
    assert not {*here} & {*_fingerprints(_plan())}


def test_another_kind_of_device_makes_every_step_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"cpu": _fingerprints(_plan("resources={device: cpu}"))}
    for name in ("NVIDIA H200", "NVIDIA A100", None):
        monkeypatch.setattr(surroundings, "_gpu_name", lambda name=name: name)
        kinds[str(name)] = _fingerprints(_plan("resources={device: auto}"))
        assert _fingerprints(_plan("resources={device: cpu}")) == kinds["cpu"]
    assert kinds.pop("None") == kinds["cpu"]
    assert len({fingerprint for found in kinds.values() for fingerprint in found}) == 3 * len(
        kinds["cpu"]
    )


def test_a_gpu_that_is_planned_for_and_cannot_be_used_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(surroundings, "_gpu_name", lambda: "NVIDIA H200")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(BuildError, match="has a NVIDIA H200, and PyTorch cannot use it"):
        build_command.device_of(Resources())
    assert build_command.device_of(Resources(device="cpu")).type == "cpu"


def test_of_all_placements_those_with_other_batches_have_other_fingerprints() -> None:
    plan = _plan()
    found = {p.batch_tokens: set[tuple[str, ...]]() for p in LADDER}
    for placement in LADDER:
        placed = plan.placed(placement)
        found[placement.batch_tokens].add(tuple(_fingerprints(placed)))
        assert placed.placed(ROOMY) == plan
    assert all(len(same) == 1 for same in found.values())
    every = [fingerprint for same in found.values() for one in same for fingerprint in one]
    assert len({*every}) == len(found) * len(plan.steps)
    assert plan.placed(replace(ROOMY, scratch=Path("x"))).fingerprint == plan.fingerprint


def test_with_smaller_batches_what_larger_ones_made_is_missing(tmp_path: Path) -> None:
    def heavy(placement: Placement) -> Cost:
        return Cost(memory_bytes=placement.batch_tokens)

    def light(placement: Placement) -> Cost:
        return Cost(memory_bytes=placement.batch_tokens // 2)

    def step(name: str, estimate: Estimate) -> Step:
        return Step(name, "search", "", {}, {}, name, estimate, estimate(ROOMY))

    plan = Plan((step("heavy", heavy), step("light", light)))
    large, small = plan, plan.placed(replace(ROOMY, batch_tokens=4096))

    def batch(memory: int, *finished: Step) -> int:
        store = Store(tmp_path / str(len(list(tmp_path.iterdir()))))
        store.root.mkdir()
        for one in finished:
            store.entry(one.fingerprint).finish({"found": {}, "seconds": 1.0, "peak_rss_bytes": 1})
        return build_command._placement_of_all(
            plan, store, Limits(memory), fresh=False
        ).batch_tokens

    assert (batch(8192), batch(5000), batch(2048)) == (8192, 4096, 2048)
    assert batch(5000, large.step("heavy")) == 8192  # what is left has room beside what is there
    assert batch(2048, large.step("heavy")) == 2048  # has none, and that is of no use any more
    assert batch(4096, small.step("heavy")) == 4096  # and does not go back to what has no room
    assert batch(8192, small.step("heavy")) == 8192


def test_a_plan_knows_its_surroundings_without_torch_and_at_once() -> None:
    code = (
        "import sys; from prunec.compiler.surroundings import surroundings\n"
        "from prunec.compiler.recipe import Resources\n"
        "print(surroundings(Resources())); assert 'torch' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    import torch

    assert f"'torch': '{torch.__version__}'" in run.stdout
