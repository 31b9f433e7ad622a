# SPDX-License-Identifier: Apache-2.0
"""Speed: real models in real runtimes. Machines that run tests are busy, so margins are wide."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from prunec.validators import speed
from prunec.validators.errors import ValidationError
from prunec.validators.hardware import hardware
from prunec.validators.measurements import SpeedResult
from prunec.validators.speed import SpeedSettings, measure_speed
from prunec.validators.speed_process import Worker

MakeModel = Callable[..., Path]

SETTINGS = SpeedSettings(
    batch_sizes=(1,),
    prompt_tokens=64,
    new_tokens=4,
    pairs=5,
    warm_up=1,
    dtype="float32",
    threads=1,
    timeout=300,
)
TINY = replace(SETTINGS, batch_sizes=(1, 3), prompt_tokens=16)


@pytest.fixture
def wide(tiny_llama: MakeModel) -> Path:
    """Seven times the work of `narrow` per token, and more token ids."""
    sizes = {"layers": 4, "hidden": 256, "query_heads": 8, "kv_heads": 4, "head_dim": 32}
    return tiny_llama(**sizes, ffn=4096, vocab=400)


@pytest.fixture
def narrow(tiny_llama: MakeModel) -> Path:
    sizes = {"layers": 4, "hidden": 256, "query_heads": 8, "kv_heads": 4, "head_dim": 32}
    return tiny_llama(**sizes, ffn=256, vocab=300)


def assert_consistent(result: SpeedResult) -> None:
    """Rates and seconds of an odd number of turns are the same medians."""
    tokens = result.batch * (result.prompt_tokens if result.phase == "prefill" else 1)
    assert result.error is None
    assert result.dense == pytest.approx(tokens / result.dense_seconds)
    assert result.pruned == pytest.approx(tokens / result.pruned_seconds)
    assert result.pruned_estimate.value == pytest.approx(result.pruned)
    assert result.speedup.low <= result.speedup.value <= result.speedup.high


def test_turns_that_are_all_alike_are_no_surer_than_another_process_would_be() -> None:
    turns = [({"decode": 0.2}, {"decode": 0.1})] * 9
    result = speed._result("hf", "decode", 4, SETTINGS, turns)
    for found, value in ((result.speedup, 2.0), (result.pruned_estimate, 40.0)):
        assert (found.low, found.value, found.high) == pytest.approx(
            (value / 1.03, value, value * 1.03)
        )


def test_less_work_is_faster_and_more_work_is_slower(wide: Path, narrow: Path) -> None:
    done: list[tuple[int, int]] = []
    results = measure_speed("hf", wide, narrow, SETTINGS, lambda *now: done.append(now))
    assert [result.phase for result in results] == ["prefill", "decode"]
    for result in results:
        assert_consistent(result)
        assert result.speedup.count == 5
        assert result.speedup.low > 1
    assert done == [(turn + 1, 6) for turn in range(6)]
    for result in measure_speed("hf", narrow, wide, SETTINGS):
        assert result.speedup.high < 1


def test_onnx_runtime_is_measured_with_a_cache(tiny_llama: MakeModel, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="needs the packages of prunec[onnx]")
    from transformers import AutoConfig

    from prunec.compiler.model.checkpoint import Checkpoint
    from prunec.compiler.model.folder import facts_from_folder
    from prunec.compiler.model.layout import dense_layout, tensor_shapes
    from prunec.exporters.onnx_graph import trace
    from prunec.exporters.onnx_weights import write_model

    source = tiny_llama(layers=2)
    facts = facts_from_folder(source)
    layout, checkpoint = dense_layout(facts), Checkpoint(source, facts)
    tensors = ((name, checkpoint.tensor(name)) for name in tensor_shapes(facts, layout))
    graph = trace(AutoConfig.from_pretrained(source), layout, torch.float32)
    write_model(graph, tmp_path, tensors, torch.float32)
    results = measure_speed("onnx", tmp_path, tmp_path, TINY)
    assert [(result.phase, result.batch) for result in results] == [
        ("prefill", 1),
        ("decode", 1),
        ("prefill", 3),
        ("decode", 3),
    ]
    for result in results:
        assert_consistent(result)
    (failed, _, _, _) = measure_speed("onnx", source, tmp_path, TINY)
    assert failed.error == f"{source} holds no model.onnx"


@pytest.mark.vllm
@pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is not installed: make setup")
def test_vllm_is_measured_through_its_engine(tiny_llama: MakeModel) -> None:
    dense = tiny_llama(layers=2, head_dim=32, ffn=256)
    pruned = tiny_llama(layers=2, head_dim=32, ffn=64)
    for result in measure_speed("vllm", dense, pruned, TINY):
        assert_consistent(result)


def test_a_model_that_takes_its_process_down_is_an_error(saved_llama: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(saved_llama, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    config |= {"model_type": "broken", "auto_map": {"AutoConfig": "broken.Broken"}}
    (broken / "config.json").write_text(json.dumps(config))
    # What it prints must not be taken for an answer.
    (broken / "broken.py").write_text(
        "import os\n"
        """print('{"vocab_size": 9}')\n"""
        "print('out of luck', flush=True)\n"
        "os._exit(7)\n"
    )
    results = measure_speed("hf", broken, saved_llama, TINY)
    assert len(results) == 4
    for result in results:
        assert result.error == f"the process that measured {broken} exited, 7: out of luck"
        assert math.isnan(result.pruned)
        assert result.speedup.count == 0


@pytest.fixture(scope="module")
def cut_short(tiny_llama: MakeModel) -> tuple[list[SpeedResult], list[Worker]]:
    """A model beside itself, one of the two killed while the second batch size is measured."""
    model, settings = tiny_llama(layers=2), replace(TINY, pairs=9)
    started: list[Worker] = []

    class Watched(Worker):
        def __enter__(self) -> Worker:
            started.append(self)
            return super().__enter__()

    def kill_in_the_second_batch(done: int, of: int) -> None:
        if done == of / 2 + 1:
            started[1]._process.kill()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "Worker", Watched)
        return measure_speed("hf", model, model, settings, kill_in_the_second_batch), started


def test_a_model_is_neither_faster_nor_slower_than_itself(
    cut_short: tuple[list[SpeedResult], list[Worker]],
) -> None:
    for result in cut_short[0][:2]:
        assert_consistent(result)
        assert result.speedup.low < 1.25
        assert result.speedup.high > 0.8


def test_a_process_that_is_killed_fails_what_is_left(
    cut_short: tuple[list[SpeedResult], list[Worker]],
) -> None:
    results, workers = cut_short
    assert [result.error is None for result in results] == [True, True, False, False]
    assert "was killed by signal 9" in str(results[2].error)
    assert all(worker._process.poll() is not None for worker in workers)


def test_a_worker_ends_when_its_user_is_interrupted(saved_llama: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        Worker("hf", saved_llama, threads=1, timeout=9) as worker,
    ):
        raise KeyboardInterrupt
    assert worker._process.poll() is not None


def test_what_takes_too_long_is_an_error(saved_llama: Path) -> None:
    settings = replace(TINY, timeout=0.01)
    for result in measure_speed("hf", saved_llama, saved_llama, settings):
        assert result.error == f"{saved_llama} gave no answer in 0.01 seconds"


def test_a_runtime_that_is_not_there_is_an_error(
    saved_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(speed._PACKAGES, "vllm", ("no_such_runtime", "pip install it"))
    for result in measure_speed("vllm", saved_llama, saved_llama, TINY):
        assert result.error == "no_such_runtime is not installed: pip install it"


@pytest.mark.parametrize("wrong", [{"pairs": 4}, {"batch_sizes": ()}, {"new_tokens": 0}])
def test_settings_that_measure_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        replace(TINY, **wrong)


def test_the_machine_and_the_versions_are_known() -> None:
    found = hardware()
    assert found["processor"] and int(found["cores"]) > 0
    assert found["torch"] == torch.__version__
