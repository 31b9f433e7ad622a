# SPDX-License-Identifier: Apache-2.0
"""Recipes that load: what is settled, what overrides do, and that the shipped ones stay right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from prunec.compiler.diagnostics import UserError
from prunec.compiler.recipe import (
    HfExport,
    HubSource,
    PythonStdlibSource,
    Recipe,
    TextSource,
    TyrMethod,
    VllmExport,
    recipe_schema,
    render_schema,
)
from prunec.compiler.recipe_file import load_recipe
from prunec.recipes import folder

SHIPPED = sorted(folder().glob("*.yaml"))

SHORTEST = """\
schema_version: 1
model: {source: org/name}
method: {kind: tyr}
target: {sparsity: 1e-1}
calibration: {source: {kind: python_stdlib}, seed: 7}
export: [{kind: hf}]
validate: {perplexity: {source: {kind: python_stdlib}, max_ratio: 3}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "my.yaml"
    path.write_text(SHORTEST, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_recipe_loads(path: Path) -> None:
    assert path.read_text().startswith("# yaml-language-server: $schema=recipe.schema.json\n")
    assert load_recipe(path).export


def test_the_recipe_of_a_large_model_ends_served_and_gated() -> None:
    """What the first user asked for: half of 70B in vLLM, its accuracy and its speed gated."""
    recipe = load_recipe(next(path for path in SHIPPED if path.stem == "llama70b_50"))
    (export,), judged = recipe.export, recipe.validation
    assert isinstance(export, VllmExport) and export.tensor_parallel > 1
    assert judged and judged.tasks and judged.tasks.min_recovery
    assert judged.tasks.backends == ["vllm"]
    assert judged.speed and judged.speed.min_speedup["vllm"].decode


def test_there_are_shipped_recipes() -> None:
    assert {path.stem for path in SHIPPED} >= {"quickstart", "llama70b_50", "uniform_50"}


def test_the_committed_schema_is_the_recipe_s() -> None:
    committed = (folder() / "recipe.schema.json").read_text(encoding="utf-8")
    assert committed == render_schema(), "prunec schema > recipes/recipe.schema.json"


def test_every_field_of_the_schema_is_described_and_draft_7() -> None:
    schema = recipe_schema()
    sections = {"Recipe": schema, **schema["definitions"]}
    for name, section in sections.items():
        assert section["description"], name
        assert section["additionalProperties"] is False, name
        for key, value in section["properties"].items():
            assert value["description"], f"{name}.{key}"
            assert "$ref" not in value, f"draft 7 ignores the description of {name}.{key}"
    assert "$defs" not in json.dumps(schema)


def test_every_number_of_bytes_may_be_written_with_its_unit(recipe: Path) -> None:
    schema = recipe_schema()
    fields = {
        f"{section}.{name}": field
        for section, content in schema["definitions"].items()
        for name, field in content.get("properties", {}).items()
        if ("bytes" in name and "ratio" not in name) or name in ("memory", "gpu_memory", "disk")
    }
    assert {"Target.weight_bytes", "SizeCheck.max_bytes", "HfExport.max_shard_bytes"} <= {*fields}
    for name, field in fields.items():
        assert "|MiB|" in json.dumps(field), name
    loaded = load_recipe(
        recipe,
        [
            "target={weight_bytes: 1.5 GiB}",
            "export=[{kind: hf, max_shard_bytes: 2GB}, {kind: vllm, max_shard_bytes: 512MiB}]",
            "validate={size: {max_bytes: 3GB}}",
        ],
    )
    assert loaded.target.weight_bytes == 3 << 29
    assert [each.model_dump()["max_shard_bytes"] for each in loaded.export] == [
        2_000_000_000,
        512 << 20,
    ]
    assert loaded.validation is not None and loaded.validation.size is not None
    assert loaded.validation.size.max_bytes == 3_000_000_000
    small = load_recipe(recipe, ["target={kv_bytes_per_token: 1KiB}"])
    assert small.target.kv_bytes_per_token == 1024
    for wrong in ("target={weight_bytes: 6 gigabytes}", "target={weight_bytes: 6g}"):
        with pytest.raises(UserError, match="must be a size with its unit"):
            load_recipe(recipe, [wrong])


def test_what_is_left_out_is_settled(recipe: Path) -> None:
    settled = load_recipe(recipe)
    assert settled.method == TyrMethod(kind="tyr")
    assert settled.target.sparsity == 0.1
    assert settled.calibration is not None and settled.search is not None
    assert settled.calibration.source == PythonStdlibSource(
        kind="python_stdlib", split="calibration"
    )
    assert settled.search.source == PythonStdlibSource(kind="python_stdlib", split="search")
    assert settled.search.seed == 7
    assert settled.validation is not None and settled.validation.perplexity is not None
    assert settled.validation.perplexity.source == PythonStdlibSource(
        kind="python_stdlib", split="evaluation"
    )


def test_faithful_has_defaults_of_its_own(recipe: Path) -> None:
    settled = load_recipe(recipe, ["method={kind: tyr, faithful: true}"])
    method = settled.method
    assert isinstance(method, TyrMethod)
    assert (method.rounds, method.offspring, method.accumulation) == (4, 128, "centre")
    said = settled.model_dump(by_alias=True, mode="json", exclude_unset=True)
    assert Recipe.model_validate(said) == settled
    method = load_recipe(recipe, ["method={kind: tyr, faithful: true, rounds: 1}"]).method
    assert isinstance(method, TyrMethod) and (method.rounds, method.offspring) == (1, 128)


def test_search_reads_calibration_s_other_windows_unless_told(recipe: Path) -> None:
    hub = "calibration.source={kind: hub, dataset: org/text}"
    settled = load_recipe(recipe, [hub])
    assert settled.search is not None and settled.calibration is not None
    assert settled.search.source == settled.calibration.source
    settled = load_recipe(recipe, [hub, "search.source={kind: hub, dataset: wikitext}"])
    assert settled.search is not None
    assert settled.search.source == HubSource(kind="hub", dataset="wikitext")


def test_a_method_that_does_not_search_has_no_search(recipe: Path) -> None:
    assert load_recipe(recipe, ["method.kind=uniform"]).search is None
    assert load_recipe(recipe, ["method.kind=magnitude", "calibration="]).calibration is None


def test_a_method_that_needs_calibration_says_so(recipe: Path) -> None:
    with pytest.raises(UserError, match="calibration is missing; method `tyr` needs it"):
        load_recipe(recipe, ["calibration="])
    with pytest.raises(UserError, match="calibration is not read by method `magnitude`"):
        load_recipe(recipe, ["method.kind=magnitude"])


@pytest.mark.parametrize(
    ("options", "at"),
    [
        (["calibration.source.split=search"], "calibration.source.split"),
        (["search.source={kind: python_stdlib, split: calibration}"], "search.source.split"),
        (["search.source={kind: python_stdlib, split: evaluation}"], "search.source.split"),
        (["validate.perplexity.source.split=search"], "validate.perplexity.source.split"),
    ],
)
def test_texts_that_must_be_disjoint_are(recipe: Path, options: list[str], at: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(recipe, options)
    (mistake,) = caught.value.diagnostics
    assert mistake.message.startswith(f'{at} is "')
    assert "must be disjoint" in mistake.message
    assert mistake.where == f"--set {options[0]}"


def test_files_and_data_sets_must_be_disjoint_too(recipe: Path) -> None:
    for name in ("a.txt", "b.txt", "c.txt"):
        (recipe.parent / name).write_text("text")
    ours = "calibration.source={kind: text, files: [a.txt, b.txt]}"

    def mistake(*options: str) -> str:
        with pytest.raises(UserError) as caught:
            load_recipe(recipe, options)
        return caught.value.diagnostics[0].message

    theirs = "validate.perplexity.source={kind: text, files: [b.txt, c.txt]}"
    said = mistake(ours, theirs)
    assert said.startswith("validate.perplexity.source reads ") and "b.txt, as calibration" in said
    assert "must be disjoint" in mistake(ours, "search.source={kind: text, files: [b.txt]}")
    hub = "source={kind: hub, dataset: some/text, split: train}"
    said = mistake(f"calibration.{hub}", f"validate.perplexity.{hub}")
    assert "reads some/text (train), as calibration does" in said
    # The same source for a search is cut into windows of its own.
    same = "search.source={kind: text, files: [a.txt, b.txt]}"
    theirs = "validate.perplexity.source={kind: text, files: [c.txt]}"
    assert load_recipe(recipe, [ours, same, theirs]).search is not None


def test_a_split_that_nothing_else_reads_is_free(recipe: Path) -> None:
    settled = load_recipe(recipe, ["method.kind=uniform", "calibration.source.split=search"])
    assert settled.calibration is not None
    assert isinstance(settled.calibration.source, PythonStdlibSource)
    assert settled.calibration.source.split == "search"


def test_search_scores_at_least_one_window(recipe: Path) -> None:
    with pytest.raises(UserError, match=r"search\.tokens is 99; it must be at least calibration"):
        load_recipe(recipe, ["search.tokens=99", "calibration.sequence_length=100"])


def test_paths_are_relative_to_the_recipe(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    odd = tmp_path / "odd [name]"  # brackets are a glob's
    odd.mkdir()
    for name in ("model", "texts", "elsewhere"):
        (odd / name).mkdir()
    for name in ("b.txt", "a.txt", "c.md"):
        (odd / "texts" / name).write_text("words")
    moved = recipe.rename(odd / "my.yaml")
    monkeypatch.chdir(odd / "elsewhere")
    files = "calibration.source={kind: text, files: [texts/*.txt, texts/a.txt, ./texts/c.md]}"
    settled = load_recipe(Path("../my.yaml"), ["model.source=model", files])
    assert settled.model.folder == odd / "model"
    assert settled.calibration is not None
    assert isinstance(settled.calibration.source, TextSource)
    assert settled.calibration.source.files == [
        str(odd / "texts" / name) for name in ("a.txt", "b.txt", "c.md")
    ]
    assert load_recipe(moved, [files]).model.folder is None


def test_a_folder_comes_before_a_hub_id_of_the_same_name(recipe: Path) -> None:
    assert load_recipe(recipe).model.source == "org/name"
    (recipe.parent / "org" / "name").mkdir(parents=True)
    assert load_recipe(recipe).model.folder == recipe.parent / "org" / "name"


def test_a_config_goes_with_a_hub_id(recipe: Path) -> None:
    config = recipe.parent / "config.json"
    config.write_text("{}")
    options = ["model.config=config.json", "model.revision=v1"]
    assert load_recipe(recipe, options).model.config == config
    with pytest.raises(UserError) as caught:
        load_recipe(recipe, ["model.source=.", *options])
    assert [one.where for one in caught.value.diagnostics] == [f"--set {one}" for one in options]


def test_overrides_set_make_and_remove_what_they_name(recipe: Path) -> None:
    options = [
        "target.sparsity=0.375",
        "search.budget.token_forwards=5",
        "export.0.max_shard_bytes=0x100000",
        'validate.completion={prompt: "a=b", tokens: 3}',
        "validate.perplexity=",
    ]
    settled = load_recipe(recipe, options)
    assert settled.target.sparsity == 0.375
    assert settled.search is not None and settled.search.budget.token_forwards == 5
    assert isinstance(settled.export[0], HfExport)
    assert settled.export[0].max_shard_bytes == 1 << 20
    assert settled.validation is not None and settled.validation.completion is not None
    assert settled.validation.completion.prompt == "a=b"
    assert settled.validation.perplexity is None


def test_the_last_override_of_a_key_wins_and_makes_lists(recipe: Path) -> None:
    recipe.write_text(SHORTEST.replace("export: [{kind: hf}]\n", ""), encoding="utf-8")
    options = ["export.0.kind=onnx", "export.0.kind=hf", "target.sparsity=9", "target.sparsity=0.5"]
    settled = load_recipe(recipe, options)
    assert [item.kind for item in settled.export] == ["hf"]


@pytest.mark.parametrize(
    ("written", "read"),
    [("1e-3", 0.001), (".5", 0.5), ("+0.5", 0.5), ("5.0e-1", 0.5), ("00.5", 0.5)],
)
def test_numbers_are_yaml_1_2(recipe: Path, written: str, read: float) -> None:
    assert load_recipe(recipe, [f"target.sparsity={written}"]).target.sparsity == read


@pytest.mark.parametrize("word", ["no", "on", "y", "1:30", "2001-01-01", "0b1", "~x", "="])
def test_words_stay_words(recipe: Path, word: str) -> None:
    settled = load_recipe(recipe, [f"validate.completion.prompt={word}"])
    assert settled.validation is not None and settled.validation.completion is not None
    assert settled.validation.completion.prompt == word


def test_a_settled_recipe_cannot_be_changed_and_settles_to_itself(recipe: Path) -> None:
    settled = load_recipe(recipe)
    with pytest.raises(ValidationError):
        settled.target.sparsity = 0.9
    again: dict[str, Any] = settled.model_dump(by_alias=True, mode="json", exclude_unset=True)
    assert Recipe.model_validate(again) == settled


def test_loading_a_recipe_imports_no_deep_learning() -> None:
    code = (
        "import sys; import prunec.compiler.recipe_file;"
        "print(sorted({'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
