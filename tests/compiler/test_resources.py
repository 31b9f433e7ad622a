# SPDX-License-Identifier: Apache-2.0
"""What a recipe allows and what a machine has: read, obeyed, refused with the number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunec.compiler import available, resources
from prunec.compiler.diagnostics import BuildError, UserError
from prunec.compiler.model.placement import ROOMY
from prunec.compiler.placing import LADDER, in_words
from prunec.compiler.planned import Planned, plan_recipe
from prunec.compiler.recipe import Resources
from prunec.compiler.recipe_file import load_recipe
from prunec.compiler.store import Store
from prunec.compiler.subject import subject_for_plan
from prunec.recipes import folder
from prunec.validators.hardware import ranks_here

GIB = 2**30
LLAMA = folder() / "llama70b_50.yaml"


def planned(*settings: str) -> Planned:
    # Tasks and speed hold whole models, wherever the work of the build lies.
    streamed = ["validate.tasks=null", "validate.speed=null"]
    return plan_recipe(LLAMA, ["resources={}", *streamed, *settings], subject_for_plan)


def mistake(*settings: str) -> str:
    with pytest.raises(UserError) as caught:
        planned(*settings)
    return str(caught.value)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("6GiB", 6 * GIB),
        ("1.5 GiB", 3 * GIB // 2),
        ("70GB", 70 * 10**9),
        ("512MiB", GIB // 2),
        ("4096", 4096),
        ("1TiB", 1024 * GIB),
        ("64KB", 64_000),
    ],
)
def test_sizes_are_read_with_their_units(written: str, read: int) -> None:
    assert load_recipe(LLAMA, [f"resources.memory={written}"]).resources.memory == read


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("memory=6gb", 'resources.memory is "6gb"; it must be a size with its unit'),
        ("memory=6gb", "hint: write 6GiB"),
        ("memory=-1", "resources.memory is -1; it must be a size"),
        ("disk=much", 'resources.disk is "much"; it must be a size'),
        ("memory=true", "resources.memory is true"),
        ("threads=0", "resources.threads is 0; it must be auto or a whole number"),
        ("threads=all", 'resources.threads is "all"; it must be auto'),
        ("device=gpu", "it must be auto, cpu or cuda"),
    ],
)
def test_what_is_no_size_says_how_one_is_written(setting: str, said: str) -> None:
    assert said in mistake(f"resources.{setting}")


def test_a_limit_for_a_gpu_goes_with_a_gpu() -> None:
    assert "remove one of the two" in mistake("resources={device: cpu, gpu_memory: 6GiB}")
    on_gpu = planned("resources={device: cuda, gpu_memory: 80GiB, memory: 200GiB}").plan.placement
    assert on_gpu.states_on_host and not on_gpu.states_in_file


def test_limits_that_leave_batches_as_they_are_are_part_of_no_fingerprint() -> None:
    roomy, small = planned().plan, planned("resources={memory: 32GiB, disk: 2TiB, threads: 3}").plan
    assert [step.fingerprint for step in roomy.steps] == [step.fingerprint for step in small.steps]
    assert roomy.placement == ROOMY
    assert in_words(small.placement) == "hidden states in files, batches of 8,192 tokens"


@pytest.mark.parametrize("memory", [20, 24, 32, 64, 400])
def test_a_plan_keeps_to_the_memory_that_it_is_given(memory: int) -> None:
    plan = planned(f"resources.memory={memory}GiB").plan
    assert max(step.cost.memory_bytes for step in plan.steps) <= memory * GIB
    faster = LADDER[: LADDER.index(plan.placement)]
    assert all(
        any(step.estimate(each).memory_bytes > memory * GIB for step in plan.steps)
        for each in faster
    )


def test_too_little_memory_is_refused_with_the_step_and_what_it_takes() -> None:
    said = mistake("resources.memory=6GiB")
    assert "resources.memory is 6.00 GiB, and the step supernet-1 takes at least 18." in said
    assert "GiB\n  hint: raise it, or use a method that solves nothing" in said
    within = mistake("resources={memory: 64GiB, gpu_memory: 6GiB}")
    assert "resources.gpu_memory is 6.00 GiB, and the step supernet-1" in within


def test_too_little_disk_is_refused_with_what_the_build_takes() -> None:
    said = mistake("resources.disk=400GiB")
    assert "resources.disk is 400 GiB, and the build takes 583 GiB" in said


def test_a_machine_that_is_too_small_is_refused_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = planned().plan.steps
    monkeypatch.setattr(available, "memory", lambda: 40 * GIB)
    assert resources.placement_here(steps, resources.limits_here(Resources())).states_in_file
    assert not resources.placement_here(
        steps, resources.limits_here(Resources(memory=24 * GIB))
    ).scratch
    monkeypatch.setattr(available, "memory", lambda: 8 * GIB)
    with pytest.raises(BuildError, match=r"^supernet-1: takes at least 18\.. GiB of memory, and"):
        resources.placement_here(steps, resources.limits_here(Resources(memory=24 * GIB)))
    small = [step for step in steps if step.kind == "tokens"]  # what is left of a resumed build
    assert resources.placement_here(small, resources.limits_here(Resources())) == ROOMY


def test_workers_of_one_machine_share_what_is_free_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available, "memory", lambda: 40 * GIB)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert resources.limits_here(Resources()).memory == 8 * GIB
    assert resources.limits_here(Resources(memory=24 * GIB)).memory == 10 * GIB
    assert resources.limits_here(Resources(memory=GIB)).memory == GIB


def test_what_a_build_has_already_written_needs_no_more_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, store = planned().plan, Store(tmp_path / "output" / ".store")
    supernet, resolve = plan.step("supernet-1"), plan.step("resolve")
    monkeypatch.setattr(available, "disk", lambda _: 163 * GIB)
    with pytest.raises(BuildError, match=r"the build writes 583 GiB more"):
        resources.check_disk(plan, ROOMY, store, tmp_path / "output")
    entry = store.entry(supernet.fingerprint)
    entry.folder.mkdir(parents=True)
    entry.finish({"found": {}, "seconds": 1.0, "peak_rss_bytes": 1})
    with pytest.raises(BuildError, match=r"the build writes 164 GiB more"):
        resources.check_disk(plan, ROOMY, store, tmp_path / "output")
    begun = store.entry(resolve.fingerprint).folder
    begun.mkdir()
    with (begun / "layer-0.safetensors").open("wb") as file:
        file.truncate(2 * GIB)  # of nothing, which takes no room
    resources.check_disk(plan, ROOMY, store, tmp_path / "output")


@pytest.mark.parametrize("version", [1, 2])
def test_the_tightest_control_group_says_how_much_memory_there_is(
    tmp_path: Path, version: int
) -> None:
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    6000 kB\n")
    (proc / "self" / "status").write_text("Name:\tx\nVmRSS:\t 1000 kB\n")
    assert available.memory(proc, cgroup) == 7000 * 1024  # no control groups at all
    lines = {1: "4:cpu:/\n3:hugetlb,memory:/outer/inner\n0::/\n", 2: "0::/outer/inner\n"}
    (proc / "self" / "cgroup").write_text(lines[version])
    root = cgroup / "memory" if version == 1 else cgroup
    name = "memory.limit_in_bytes" if version == 1 else "memory.max"
    (root / "outer" / "inner").mkdir(parents=True)
    (root / "outer" / "inner" / name).write_text("9223372036854771712" if version == 1 else "max")
    assert available.memory(proc, cgroup) == 7000 * 1024
    (root / "outer" / name).write_text("5000000\n")
    assert available.memory(proc, cgroup) == 5_000_000
    assert available.memory(tmp_path, cgroup) is None  # not Linux


def test_models_that_vllm_splits_over_gpus_take_a_share_of_each() -> None:
    recipe = plan_recipe(LLAMA, [], subject_for_plan).plan
    alone = plan_recipe(
        LLAMA, ["export.0.tensor_parallel=1", "resources={device: cuda}"], subject_for_plan
    ).plan
    for name in ("tasks-dense-vllm", "tasks-pruned-vllm", "speed-vllm"):
        assert recipe.step(name).params["tensor_parallel"] == 4
        assert "tensor_parallel" not in alone.step(name).params
        split, whole = recipe.step(name).cost.gpu_bytes, alone.step(name).cost.gpu_bytes
        assert whole / 4 < split < whole / 3.5, name


@pytest.mark.parametrize(
    ("wanted", "there", "ranks"), [(4, 4, 4), (4, 3, 2), (4, 8, 4), (6, 4, 3), (4, 0, 1)]
)
def test_a_machine_with_fewer_gpus_splits_over_a_divisor(
    wanted: int, there: int, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    assert ranks_here(wanted) == ranks
