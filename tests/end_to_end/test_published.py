# SPDX-License-Identifier: Apache-2.0
"""Týr as published, from recipe to artefact."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

import prunec.exporters.hf  # noqa: F401 - lets transformers know our classes

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Hashes = Callable[[Path], dict[str, str]]

HEAD_DIM, STEP = 16, 8 * 3 * 96  # parameters of eight neurons

FAITHFUL = [
    "method={kind: tyr, faithful: true, rounds: 2, offspring: 8, accumulation: weighted_mean}",
    "search.budget.token_forwards=6000",
    "model.dtype=float32",
    "target.sparsity=0.3",
    "calibration.seed=3",  # of which a KV head is lost
]


def options(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


@pytest.fixture(scope="module")
def source(tiny_llama: Callable[..., Path]) -> Path:
    """Six query heads on two KV heads, so that they can be left unevenly."""
    return tiny_llama(hidden=96, query_heads=6, kv_heads=2, head_dim=HEAD_DIM)


@pytest.fixture(scope="module")
def faithful(
    recipe: Path, source: Path, prunec: Run, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The output of an uninterrupted build. Do not write to it."""
    output = tmp_path_factory.mktemp("faithful")
    settings = options(*FAITHFUL, f"model.source={source}")
    done = prunec("build", recipe, "--output", output, *settings)
    assert done.returncode == 0, done.stderr
    return output


def prunable(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.numel() for name, tensor in tensors.items() if "proj.weight" in name)


def test_it_is_as_small_as_was_asked_for_within_its_budget(
    faithful: Path, source: Path, prunec: Run
) -> None:
    dense = load_file(source / "model.safetensors")
    pruned = load_file(faithful / "hf" / "model.safetensors")
    config = AutoConfig.from_pretrained(faithful / "hf")
    # A KV head that nothing reads is gone, and what it held is made up for.
    assert sum(config.shape_of(layer)[1] for layer in range(config.num_hidden_layers)) < 6
    assert abs(prunable(pruned) - 0.7 * prunable(dense)) <= STEP / 2
    report = json.loads((faithful / "report" / "report.json").read_text("utf-8"))
    divergence = report["search"]["divergence"]
    assert divergence["winner"] <= divergence["uniform"]
    rounds = {line["round"] for line in report["search"]["history"]}
    assert rounds == {1, 2}
    # The searches' budget is the teacher's 256 tokens and theirs.
    assert 0 < report["search"]["history"][-1]["token_forwards"] <= 6_000 - 256
    assert prunec("inspect", faithful).returncode == 0


def kept_units(dense: Tensor, pruned: Tensor, rows: int) -> list[int]:
    """Units of the dense weight whose rows are the pruned weight's, one after the other."""
    dense, pruned = (
        dense.reshape(-1, rows, dense.shape[1]),
        pruned.reshape(-1, rows, dense.shape[1]),
    )
    return [next(i for i, unit in enumerate(dense) if torch.equal(unit, kept)) for kept in pruned]


@torch.no_grad()
def masked_dense(source: Path, artefact: Path) -> Any:
    """The dense model with the artefact's last columns in their places and zeros elsewhere."""
    model = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    tensors = load_file(artefact / "model.safetensors")
    for index, layer in enumerate(model.model.layers):
        for first, last, name, rows in (
            (layer.self_attn.q_proj, layer.self_attn.o_proj, "self_attn.{}_proj", HEAD_DIM),
            (layer.mlp.gate_proj, layer.mlp.down_proj, "mlp.{}_proj", 1),
        ):
            ends = ("q", "o") if rows > 1 else ("gate", "down")
            there = [f"model.layers.{index}.{name.format(end)}.weight" for end in ends]
            last.weight.zero_()
            if there[0] not in tensors:
                continue
            kept = kept_units(first.weight, tensors[there[0]], rows)
            columns = [unit * rows + i for unit in kept for i in range(rows)]
            last.weight[:, columns] = tensors[there[1]]
    return model


def test_the_artefact_computes_and_generates_what_the_masked_dense_model_does(
    faithful: Path, source: Path
) -> None:
    config = json.loads((faithful / "hf" / "config.json").read_text("utf-8"))
    assert any("query_groups" in shape for shape in config["per_layer_config"].values())
    model = AutoModelForCausalLM.from_pretrained(faithful / "hf", dtype=torch.float32)
    dense = masked_dense(source, faithful / "hf")
    tokens = torch.arange(3, 99).reshape(4, 24)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, dense(tokens).logits, atol=1e-4, rtol=1e-4)
    greedy = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    prompt = tokens[:1, :6]
    cached = model.generate(prompt, use_cache=True, **greedy)
    assert torch.equal(cached, dense.generate(prompt, use_cache=False, **greedy))


def test_it_may_be_interrupted_again_and_again(
    faithful: Path,
    recipe: Path,
    source: Path,
    prunec: Run,
    hashes: Hashes,
    interrupt_at_write: Callable[[int], AbstractContextManager[None]],
    tmp_path: Path,
) -> None:
    settings = options(*FAITHFUL, f"model.source={source}")
    for interruptions in range(100):  # noqa: B007 - looked at below
        with interrupt_at_write(7):
            done = prunec("build", recipe, "--output", tmp_path, *settings)
        if done.returncode != 130:
            break
    assert done.returncode == 0, done.stderr
    assert interruptions > 4
    assert hashes(tmp_path) == hashes(faithful)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("target.layout=uniform", "target.layout is uniform; with method.faithful: true every"),
        ("target.sparsity=0.99", "target.sparsity is 0.99; without its KV heads, at most 0.8824"),
        ("search.budget.token_forwards=1000", "is 1,000; 2 rounds of one generation take "),
    ],
)
def test_what_it_cannot_do_is_told_before_anything_is_done(
    setting: str, says: str, recipe: Path, source: Path, prunec: Run
) -> None:
    done = prunec("plan", recipe, *options(*FAITHFUL, f"model.source={source}", setting))
    assert done.returncode == 2
    assert says in done.stderr and done.stderr.startswith(f"--set {setting}")


def test_a_full_budget_is_planned_as_published(recipe: Path, source: Path, prunec: Run) -> None:
    settings = options(
        f"model.source={source}",
        "method={kind: tyr, faithful: true}",
        "search.tokens=2048",
        "search.budget.token_forwards=100000000",
    )
    done = prunec("plan", recipe, "--json", *settings)
    assert done.returncode == 0, done.stderr
    steps = json.loads(done.stdout)["steps"]
    searches = [step["params"] for step in steps if step["kind"] == "published-search"]
    assert [(one["offspring"], one["generations"]) for one in searches] == [(128, 50)] * 4
    # Each 2 + 2 + 4 times the tokens for the offspring, once for the parent; and the centre.
    assert {one["token_forwards"] for one in searches} == {2048 * (1 + 50 * 9)}
    apart = [step["params"]["step"] for step in steps if step["kind"] == "published-supernet"]
    assert apart == [[1, 16], [1, 8], [1, 8], [1, 8]]
    assert math.isclose(next(s for s in steps if s["kind"] == "teacher")["params"]["top_k"], 300)
