# SPDX-License-Identifier: Apache-2.0
"""What a recipe may say of mixtures, metrics, tuning and recovery, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunec.compiler.diagnostics import UserError
from prunec.compiler.recipe import LoraRecovery, MixedSource, PythonStdlibSource
from prunec.compiler.recipe_file import load_recipe

QUICKSTART = Path(__file__).resolve().parents[2] / "recipes" / "quickstart.yaml"
NO_SEARCH = "search=null"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["recover={kind: lora, labels: 0, divergence: 0}"], "recover.hidden is 0, and so are"),
        (["recover={kind: lora, tokens: 10}"], "at least one window of text (256 tokens)"),
        (
            ["recover={kind: lora, source: {kind: python_stdlib, split: evaluation}}"],
            'recover.source.split is "evaluation", which validate.perplexity reads too',
        ),
        (
            ["recover={kind: lora, held_out: {kind: python_stdlib, split: evaluation}}"],
            'recover.held_out.split is "evaluation", which validate.perplexity reads too',
        ),
        (
            ["recover={kind: blockwise, held_out: {kind: python_stdlib, split: calibration}}"],
            'recover.held_out.split is "calibration", which recover reads too',
        ),
        (
            ["validate.perplexity.tokens=everything"],
            'tokens is "everything"; it must be a whole number of at least 1, or all',
        ),
        (
            ["validate.perplexity.source={kind: self}"],
            "must be python_stdlib, text, jsonl, chat or hub",
        ),
        (["calibration.source={kind: chat}"], "dataset is not given, and neither is files"),
        (
            ["calibration.source={kind: chat, files: [quickstart.yaml], dataset: org/name}"],
            "dataset is given beside files",
        ),
        (
            ["calibration.source={kind: chat, files: [quickstart.yaml], split: test}"],
            "split is legal only with a dataset of the hub",
        ),
        (
            ["calibration.source={kind: chat, dataset: 'a b'}"],
            "must be the id of a hub dataset",
        ),
        (
            [
                "calibration.source={kind: chat, dataset: org/name}",
                "validate.perplexity.source={kind: hub, dataset: org/name}",
            ],
            "reads org/name (train), as calibration does",
        ),
        (
            [
                "calibration.source={kind: mix, parts: {a: {source: {kind: self}, weight: 0}, "
                "b: {source: {kind: self}, weight: 0}}}"
            ],
            "gives every part the weight 0",
        ),
        (
            [
                "calibration.source={kind: mix, parts: {a: {source: {kind: self}}, b: {source: "
                "{kind: python_stdlib, split: evaluation}}}}"
            ],
            'calibration.source.parts.b.source.split is "evaluation"',
        ),
        (["method={kind: importance, metrics: {wanda: 0}}", NO_SEARCH], "every metric the weight"),
        (["method={kind: importance, metrics: {wnda: 1}}", NO_SEARCH], 'has no key "wnda"'),
        (["method={kind: adapruner}"], "search.budget is not read by method `adapruner`"),
        (["method={kind: adapruner, inner: tyr, finalists: 2}"], "finalists is not read"),
        (["method={kind: adapruner, inner: tyr, refit: false}"], "refit is not read"),
        (
            ["method={kind: adapruner, finalists: 2, refit: false}", "search={}"],
            "so that method.finalists is not read",
        ),
        (
            ["method={kind: adapruner, inner: uniform, allocation: {slope: [0, 0]}}", "search={}"],
            "allocation is not read",
        ),
        (
            ["method={kind: adapruner, inner: tyr, solver: {damping: [0, 1]}}"],
            "both must be above 0",
        ),
        (["method={kind: tyr, faithful: true, centre: 0.5}"], "centre is not read with"),
    ],
)
def test_what_would_not_be_obeyed_is_refused(settings: list[str], said: str) -> None:
    with pytest.raises(UserError) as refused:
        load_recipe(QUICKSTART, settings)
    assert said in " ".join(mistake.message for mistake in refused.value.diagnostics)


def test_every_part_of_a_mixture_reads_the_split_of_the_section_it_stands_in() -> None:
    parts = "{code: {source: {kind: python_stdlib}}, own: {source: {kind: self}}}"
    recipe = load_recipe(QUICKSTART, [f"calibration.source={{kind: mix, parts: {parts}}}"])
    assert recipe.calibration is not None and recipe.search is not None
    for section, split in ((recipe.calibration, "calibration"), (recipe.search, "search")):
        assert isinstance(section.source, MixedSource)
        code = section.source.parts["code"].source
        assert isinstance(code, PythonStdlibSource) and code.split == split


def test_recovery_reads_calibration_s_text_and_is_judged_on_other() -> None:
    recipe = load_recipe(QUICKSTART, ["recover={kind: lora}"])
    assert isinstance(recipe.recover, LoraRecovery) and recipe.calibration is not None
    assert recipe.recover.source == recipe.calibration.source
    assert recipe.recover.sequence_length == recipe.calibration.sequence_length
    assert isinstance(recipe.recover.held_out, PythonStdlibSource)
    assert recipe.recover.held_out.split == "search"
