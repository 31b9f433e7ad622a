# SPDX-License-Identifier: Apache-2.0
"""What a build delivers, asked of the command line and of the files it leaves."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

ROOT = Path(__file__).parents[2]

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Hashes = Callable[[Path], dict[str, str]]

#: Parameters of eight neurons, the smallest step that the recipe allows.
STEP = 8 * 3 * 64

#: A recipe without what only the search reads.
METHODS = {
    "tyr": [],
    "uniform": ["method={kind: uniform}", "search=null"],
    "magnitude": ["method={kind: magnitude}", "search=null", "calibration=null"],
}


def options(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def report_of(output: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((output / "report" / "report.json").read_text("utf-8"))
    return report


def steps_run(output: Path) -> set[str]:
    """The steps that the last build carried out, not taken from its store."""
    return {step["name"] for step in report_of(output)["cost"]["steps"] if not step["reused"]}


def prunable_parameters(folder: Path) -> int:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return sum(math.prod(shape) for name, shape in shapes.items() if "proj.weight" in name)


def test_the_manifest_lists_every_file_with_its_hash(built: Path) -> None:
    manifest = json.loads((built / "manifest.json").read_text("utf-8"))
    delivered = {
        path.relative_to(built).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in built.rglob("*")
        if path.is_file() and not path.relative_to(built).parts[0].startswith(".")
    }
    del delivered["manifest.json"]
    assert {name: entry["sha256"] for name, entry in manifest["files"].items()} == delivered
    expected = {"hf/config.json", "hf/model.safetensors", "hf/tokenizer.json", "hf/README.md"}
    expected |= {"hf/prunec/recipe.yaml", "hf/prunec/plan.json"}
    assert delivered.keys() >= expected | {"report/report.json", "report/report.md"}
    assert delivered.keys() >= {"report/layers.svg", "report/search.png"}
    assert manifest["versions"]["prunec"] and manifest["versions"]["torch"]


def test_the_report_holds_what_is_promised(built: Path) -> None:
    report = report_of(built)
    for section, keys in {
        "dense": ["parameters"],
        "pruned": ["parameters", "sparsity"],
        "perplexity": ["dense", "pruned", "tokens"],
        "cost": ["token_forwards", "seconds", "peak_rss_bytes"],
    }.items():
        for key in keys:
            assert report[section][key] > 0, (section, key)
    assert len(report["layers"]) == 3
    for layer in report["layers"]:
        assert layer.keys() >= {"query_heads", "kv_heads", "ffn", "attention", "mlp"}
    for estimate in (report["perplexity"]["ratio"], report["perplexity"]["divergence"]):
        assert 0 < estimate["low"] < estimate["value"] < estimate["high"]
    [gate] = report["gates"]
    assert gate["passed"] is True and gate["threshold"] == 1000
    assert gate["measured"] == report["perplexity"]["ratio"]["value"]
    assert report["seed"] == 0
    divergence = report["search"]["divergence"]
    assert divergence["winner"] < divergence["uniform"]


@pytest.mark.parametrize("layout", ["per_layer", "uniform"])
@pytest.mark.parametrize("method", METHODS)
def test_the_written_file_is_as_small_as_was_asked_for(
    method: str, layout: str, recipe: Path, prunec: Run, tiny_llama: Any, tmp_path: Path
) -> None:
    settings = [*METHODS[method], f"target.layout={layout}", "target.sparsity=0.4"]
    done = prunec("build", recipe, "--output", tmp_path, *options(*settings))
    assert done.returncode == 0, done.stderr
    dense, pruned = prunable_parameters(tiny_llama()), prunable_parameters(tmp_path / "hf")
    step = STEP if layout == "per_layer" else 3 * STEP
    assert abs(pruned - 0.6 * dense) <= step
    report = report_of(tmp_path)
    assert report["pruned"]["sparsity"] == pytest.approx(1 - pruned / dense)
    assert report["method"] == method
    config = json.loads((tmp_path / "hf" / "config.json").read_text("utf-8"))
    assert config["model_type"] == ("llama" if layout == "uniform" else "prunec_llama")


def test_calibration_text_may_be_json_lines(recipe: Path, prunec: Run, tmp_path: Path) -> None:
    source = "calibration.source={kind: jsonl, files: [fit.jsonl], field: body}"
    done = prunec("build", recipe, "--output", tmp_path, *options(source, *METHODS["uniform"]))
    assert done.returncode == 0, done.stderr
    wrong = prunec("plan", recipe, *options(source.replace("body", "text")))
    assert wrong.returncode == 2
    assert "fit.jsonl:1: " in wrong.stderr and "'text'" in wrong.stderr
    assert "its fields: body" in wrong.stderr


def test_documents_without_text_are_counted_and_not_fitted_to(
    recipe: Path, prunec: Run, tmp_path: Path
) -> None:
    rows = (recipe.parent / "fit.jsonl").read_text().splitlines()
    empty = [json.dumps({"body": body}) for body in ("", " \n", None)] * 9
    (tmp_path / "rows.jsonl").write_text("\n".join(empty))
    text = f"calibration.source={{kind: jsonl, files: [{tmp_path}/rows.jsonl], field: body}}"
    chosen = options(text, *METHODS["uniform"])
    done = prunec("build", recipe, "--output", tmp_path / "out", *chosen)
    assert done.returncode == 3
    assert "rows.jsonl: of 27 documents 18 are empty and 9 hold null" in done.stderr
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows, *empty]))
    done = prunec("build", recipe, "--output", tmp_path / "out", *chosen)
    assert done.returncode == 0, done.stderr
    assert ", 27 empty documents skipped" in done.stderr


def test_text_of_end_tokens_alone_is_refused(recipe: Path, prunec: Run, tmp_path: Path) -> None:
    (tmp_path / "ends.txt").write_text("</s>" * 2000)
    text = f"calibration.source={{kind: text, files: [{tmp_path}/ends.txt]}}"
    done = prunec("build", recipe, "--output", tmp_path, *options(text, *METHODS["uniform"]))
    assert done.returncode == 3
    assert "calibration-tokens: the text holds nothing but tokens that end a text" in done.stderr


def test_a_text_that_is_too_short_is_said_to_be(recipe: Path, prunec: Run, tmp_path: Path) -> None:
    done = prunec("build", recipe, "--output", tmp_path, "--set", "calibration.tokens=20000")
    assert done.returncode == 3
    assert "calibration-tokens: the source holds" in done.stderr
    assert not (tmp_path / "manifest.json").exists()


def test_files_that_are_too_small_for_any_tokenizer_are_refused_when_planning(
    recipe: Path, prunec: Run
) -> None:
    done = prunec("plan", recipe, "--set", "calibration.tokens=1000000")
    assert done.returncode == 2
    said = " ".join(done.stderr.split())
    assert "calibration.source has" in said and "too few for the 1,000,000 tokens" in said


def test_json_is_all_that_a_build_prints_on_stdout(
    built: Path, recipe: Path, prunec: Run, tmp_path: Path
) -> None:
    output = shutil.copytree(built, tmp_path / "copy")
    done = prunec("build", recipe, "--output", output, "--json")
    assert json.loads(done.stdout) == report_of(output)
    assert "reused" in done.stderr


def test_a_gate_that_fails_is_exit_code_1(
    built: Path, recipe: Path, prunec: Run, tmp_path: Path
) -> None:
    output = shutil.copytree(built, tmp_path / "copy")
    harsh = ("build", recipe, "--output", output, "--set", "validate.perplexity.max_ratio=0.5")
    done = prunec(*harsh)
    assert done.returncode == 1
    assert "failed" in done.stdout
    assert report_of(output)["passed"] is False
    assert json.loads((output / "manifest.json").read_text("utf-8"))["exit_code"] == 1
    assert prunec(*harsh).returncode == 1


def test_inspect_notices_a_changed_file(built: Path, prunec: Run, tmp_path: Path) -> None:
    sound = prunec("inspect", built)
    assert sound.returncode == 0, sound.stdout
    output = shutil.copytree(built, tmp_path / "copy")
    weights = output / "hf" / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    found = prunec("inspect", output, "--json")
    assert found.returncode == 1
    assert any(
        "hf/model.safetensors" in problem for problem in json.loads(found.stdout)["problems"]
    )


def test_plan_names_the_steps_that_a_build_stores(built: Path, recipe: Path, prunec: Run) -> None:
    planned = json.loads(prunec("plan", recipe, "--json").stdout)
    manifest = json.loads((built / "manifest.json").read_text("utf-8"))
    assert manifest["fingerprint"] == planned["fingerprint"]
    steps = {step["name"]: step["fingerprint"] for step in planned["steps"]}
    assert manifest["steps"] == steps
    assert {path.name for path in (built / ".store").iterdir()} == {*steps.values(), "model.json"}
    # The plan that travels with the weights is that one too.
    travelling = json.loads((built / "hf" / "prunec" / "plan.json").read_text("utf-8"))
    assert travelling == {name: planned[name] for name in travelling}
    assert travelling["steps"]


def test_a_plan_as_json_says_what_its_table_says(recipe: Path, prunec: Run) -> None:
    read = prunec("plan", recipe, "--set", "target.layout=uniform").stdout
    plan = json.loads(prunec("plan", recipe, "--set", "target.layout=uniform", "--json").stdout)
    model, alike = plan["model"], plan["target"]["uniform"]
    # Three layers of four query heads on two KV heads of 16, hidden 64, FFN 96, at bfloat16.
    attention, mlp = (4 + 2 + 2 + 4) * 16 * 64, 3 * 64 * 96
    assert model["prunable_parameters"] == 3 * (attention + mlp)
    assert model["kv_bytes_per_token"] == 3 * 2 * 2 * 16 * 2
    assert model["weight_bytes"] == 2 * model["parameters"]
    assert len(alike["layers"]) == 3
    assert alike["parameters"] < model["parameters"]
    for said in (
        f"{model['parameters']:,} parameters, {model['prunable_parameters']:,} of them prunable",
        "3 layers, 4 query heads on 2 KV heads, FFN 96, 384 KV bytes/token",
        f"target: {plan['target']['words']}, layout uniform, method {plan['method']}",
        f"placement: {plan['placement']['words']}",
        f"{plan['total']['token_forwards']:,}",
    ):
        assert said in read, said


def test_planning_a_large_model_takes_neither_network_nor_torch(prunec_process: Run) -> None:
    no_sockets = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('a connection was tried')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse"
    )
    done = prunec_process(
        "plan",
        ROOT / "recipes" / "llama70b_50.yaml",
        "--json",
        prelude=no_sockets,
        epilogue="assert not {'torch', 'transformers', 'matplotlib'} & sys.modules.keys()",
    )
    assert done.returncode == 0, done.stderr
    kinds = {step["kind"] for step in json.loads(done.stdout)["steps"]}
    assert {"tokens", "teacher", "supernet", "search", "resolve", "export"} <= kinds


def test_a_second_build_does_nothing_again(
    built: Path, recipe: Path, prunec: Run, hashes: Hashes, tmp_path: Path
) -> None:
    output = shutil.copytree(built, tmp_path / "copy")
    before = (output / "hf" / "model.safetensors").stat().st_mtime_ns
    done = prunec("build", recipe, "--output", output)
    assert done.returncode == 0, done.stderr
    assert steps_run(output) == set()
    assert hashes(output) == hashes(built)
    assert (output / "hf" / "model.safetensors").stat().st_mtime_ns == before


def test_a_fresh_build_does_all_again_and_writes_the_same(
    built: Path, recipe: Path, prunec: Run, hashes: Hashes, tmp_path: Path
) -> None:
    output = shutil.copytree(built, tmp_path / "copy")
    done = prunec("build", recipe, "--output", output, "--fresh")
    assert done.returncode == 0, done.stderr
    assert len(steps_run(output)) == len(report_of(output)["cost"]["steps"])
    assert hashes(output) == hashes(built)


@pytest.mark.parametrize(
    ("setting", "again"),
    [
        ("search.budget.token_forwards=3800", {"search-1", "supernet-2", "search-2", "resolve"}),
        ("validate.perplexity.tokens=256", {"evaluation-tokens", "measure-dense"}),
        ("validate.perplexity.max_ratio=999.0", set()),
        ("target.sparsity=0.25", {"supernet-1", "search-1", "supernet-2", "search-2", "resolve"}),
    ],
)
def test_a_change_does_again_what_depends_on_it(
    setting: str,
    again: set[str],
    built: Path,
    recipe: Path,
    prunec: Run,
    hashes: Hashes,
    tmp_path: Path,
) -> None:
    output = shutil.copytree(built, tmp_path / "copy")
    done = prunec("build", recipe, "--output", output, "--set", setting)
    assert done.returncode == 0, done.stderr
    # The recipe lies beside the weights, so that any change of it writes the artefact anew.
    assert steps_run(output) - {"export-hf", "measure-pruned"} == again
    assert f"# --set {setting}" in (output / "hf" / "prunec" / "recipe.yaml").read_text("utf-8")
    fresh = tmp_path / "fresh"
    assert prunec("build", recipe, "--output", fresh, "--set", setting).returncode == 0
    assert hashes(output) == hashes(fresh)
