# SPDX-License-Identifier: Apache-2.0
"""Estimates against counts made by hand, at sizes where the process itself is no matter.

That they are true of real builds is measured by `benchmarks/memory.py`.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from prunec.compiler import estimates, estimates_artefact, estimates_tuning, estimates_walk
from prunec.compiler.estimates import BUFFER_BYTES, PROCESS_BYTES, Sizes, Windows
from prunec.compiler.estimates_artefact import measurement
from prunec.compiler.estimates_search import nested_bytes, search, teacher
from prunec.compiler.estimates_walk import walk
from prunec.compiler.model import decoder
from prunec.compiler.model.facts import Facts, facts_from_config
from prunec.compiler.model.placement import ROOMY
from prunec.compiler.passes import eliminate, least_squares
from prunec.compiler.passes.importance import collect, gradients
from prunec.compiler.placing import LADDER
from prunec.compiler.plan import Work
from prunec.compiler.planned import plan_recipe
from prunec.compiler.subject import subject_for_plan
from prunec.compiler.tuning import pools
from prunec.recipes import folder
from prunec.validators import perplexity

GIB = 2**30
TEXT = Windows(512, 2048)


@pytest.fixture(scope="module")
def llama() -> Facts:
    """Llama-3.1-8B."""
    config = json.loads((folder() / "configs" / "llama-3.1-70b.json").read_text())
    return facts_from_config(
        config
        | {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
        }
    )


def test_half_of_an_8b_model_is_made_in_6_gib(llama: Facts) -> None:
    sizes, small = Sizes(llama, "bfloat16"), LADDER[-1]
    steps = [
        walk(sizes, TEXT, disk_bytes=0),
        walk(sizes, TEXT, disk_bytes=0, dense_target=0.5, kept=0.5),
        teacher(sizes, Windows(8, 2048), 512),
        search(sizes, Windows(8, 2048), token_forwards=1, top_k=512, kept=0.5, level=1792),
        measurement(sizes, Windows(32, 2048), weights=16 * 10**9, reference_bytes=0),
    ]
    assert max(step(small).memory_bytes for step in steps) < 6 * GIB
    assert max(step(ROOMY).memory_bytes for step in steps) > 16 * GIB


def test_a_walk_holds_what_it_solves_beside_a_layer(llama: Facts) -> None:
    """Matrices by name, of 14336 inputs and 4096 outputs; depth is no matter with files."""
    sizes = Sizes(llama, "bfloat16")
    filed = replace(ROOMY, vocabulary_stays=False, states_in_file=True, batch_tokens=1)
    gram = inverse = moment = 14336 * 14336 * 8
    target = weight = 14336 * 4096 * 8
    attention = 2 * (4096 * 4096 * 2 + 1024 * 4096 * 2)
    layer = attention + 3 * 4096 * 14336 * 2
    held = gram + inverse + moment + target + weight + layer + attention
    cost = walk(sizes, TEXT, disk_bytes=0, kept=0.5)(filed)
    assert cost.memory_bytes == pytest.approx(PROCESS_BYTES + BUFFER_BYTES + held, rel=0.01)
    assert cost.scratch_bytes == TEXT.tokens * 4096 * 2
    deep = Sizes(replace(llama, layers=320), "bfloat16")
    assert walk(deep, TEXT, disk_bytes=0, kept=0.5)(filed).memory_bytes == cost.memory_bytes
    without = walk(sizes, TEXT, disk_bytes=0, kept=0.5)(replace(filed, matrices_in_file=True))
    assert cost.memory_bytes - without.memory_bytes == gram
    assert without.scratch_bytes - cost.scratch_bytes == gram


def test_the_work_of_a_walk_is_that_of_its_passes_and_grams(llama: Facts) -> None:
    sizes = Sizes(llama, "bfloat16")
    work = walk(sizes, TEXT, disk_bytes=7, kept=0.5)(ROOMY).work
    prunable = 32 * (2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 4096 * 14336)
    scores = 32 * 4096 * 2048
    assert work[Work.BFLOAT16] == 2 * 2 * TEXT.tokens * (prunable + scores)
    assert work[Work.FLOAT32] == 32 * TEXT.tokens * (14336**2 + 4096**2)  # half of each
    assert work[Work.WRITE] == 7
    assert nested_bytes(sizes) == 32 * 4 * (14336 * (14336 + 4096) + 4096 * (4096 + 4096))


def test_what_is_counted_by_is_what_the_passes_work_by() -> None:
    """Plans import no torch, so these stand twice."""
    assert estimates.LOGIT_BYTES == decoder.LOGIT_BYTES
    assert estimates.BLOCK == least_squares._BLOCK
    assert estimates_walk._PANEL == eliminate.PANEL
    assert estimates_walk._STATE_BYTES == collect.STATE_BYTES
    assert estimates_walk._LOGIT_BYTES == gradients.LOGIT_BYTES
    assert estimates_artefact._LOGIT_BYTES == perplexity._LOGIT_BYTES
    assert estimates_tuning._KEPT_BYTES == pools.KEPT_BYTES


def test_every_rung_of_the_ladder_takes_less_memory_than_the_one_before() -> None:
    steps = plan_recipe(
        folder() / "llama70b_50.yaml", ["resources={}"], subject_for_plan
    ).plan.steps
    for step in steps:
        taken = [step.estimate(placement).memory_bytes for placement in LADDER]
        assert taken == sorted(taken, reverse=True), step.name
        on_gpu = [step.estimate(placement).gpu_bytes for placement in LADDER]
        assert on_gpu == sorted(on_gpu, reverse=True), step.name
