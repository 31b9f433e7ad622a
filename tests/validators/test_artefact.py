# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from prunec.validators.artefact import inspect, read_weights
from prunec.validators.errors import ValidationError
from prunec.validators.manifest import check_manifest
from prunec.validators.shapes import LayerShape
from prunec.validators.tables import render_artefact

WEIGHTS = "model.safetensors"
FIRST = "model.layers.0."


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def per_layer(query_heads: int, kv_heads: int, ffn: int) -> dict[str, dict[str, Any]]:
    """The config's words for layer 0 of these sizes and layer 1 without attention."""
    sizes = {"num_attention_heads": query_heads, "num_key_value_heads": kv_heads}
    return {"0": {**sizes, "intermediate_size": ffn}, "1": {"skip": ["attention"]}}


@pytest.fixture
def pruned(llama: Path) -> Path:
    """The tiny model with one query and one KV head and 16 neurons fewer in layer 0, no attention
    in layer 1, and the config and the recipe that go with it."""

    def prune(tensors: dict[str, torch.Tensor]) -> None:
        for name, rows in (("q", 16), ("k", 8), ("v", 8)):
            key = f"{FIRST}self_attn.{name}_proj.weight"
            tensors[key] = tensors[key][:rows]
        tensors[f"{FIRST}self_attn.o_proj.weight"] = tensors[f"{FIRST}self_attn.o_proj.weight"][
            :, :16
        ]
        for name in ("gate", "up"):
            key = f"{FIRST}mlp.{name}_proj.weight"
            tensors[key] = tensors[key][:32]
        tensors[f"{FIRST}mlp.down_proj.weight"] = tensors[f"{FIRST}mlp.down_proj.weight"][:, :32]
        for name in list(tensors):
            if name.startswith(("model.layers.1.self_attn", "model.layers.1.input_layernorm")):
                del tensors[name]

    edit_tensors(llama, prune)
    edit_config(llama, model_type="prunec_llama", per_layer_config=per_layer(2, 1, 32))
    (llama / "prunec").mkdir()
    (llama / "prunec" / "recipe.yaml").write_text("method: {kind: [tyr]}\n")
    return llama


@pytest.fixture
def build(pruned: Path, tmp_path: Path) -> Path:
    """A build's output folder around the pruned model, with a true report and manifest."""
    folder = tmp_path / "build"
    shutil.copytree(pruned, folder / "hf")
    weights, _ = read_weights(folder / "hf")
    sizes = {
        what: getattr(weights, what)
        for what in ("parameters", "prunable_parameters", "bytes", "kv_bytes_per_token")
    }
    dense = {"query_heads": 4, "kv_heads": 2, "ffn": 48}
    (folder / "report").mkdir()
    (folder / "report" / "report.json").write_text(
        json.dumps({"passed": True, "pruned": sizes, "dense_layers": [dense] * 2})
    )
    write_manifest(folder)
    return folder


def write_manifest(folder: Path) -> None:
    files = {
        path.relative_to(folder).as_posix(): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps({"files": files}))


def test_sizes_of_a_dense_model_are_those_that_torch_counts(saved_llama: Path) -> None:
    artefact = inspect(saved_llama)
    model = LlamaForCausalLM.from_pretrained(saved_llama)
    projections = [p for name, p in model.named_parameters() if "_proj." in name]
    assert artefact.kind == "model"
    assert artefact.problems == ()
    weights = artefact.weights
    assert weights is not None
    assert weights.parameters == sum(p.numel() for p in model.parameters())
    assert weights.prunable_parameters == sum(p.numel() for p in projections)
    assert weights.bytes == (saved_llama / WEIGHTS).stat().st_size
    assert weights.kv_bytes_per_token == 2 * 2 * 2 * 8 * 4  # layers, K and V, heads, dim, float32
    assert weights.layers == (LayerShape(4, 2, 8, 48),) * 2


def test_a_tied_head_that_is_stored_all_the_same_is_counted_once(llama: Path) -> None:
    before = read_weights(llama)[0].parameters
    edit_tensors(
        llama, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()})
    )
    weights, problems = read_weights(llama)
    assert (weights.parameters, problems) == (before, [])


@pytest.mark.parametrize("head", [lambda e: e + 1, lambda e: e.double(), lambda e: e[1:].clone()])
def test_a_tied_head_that_is_another_is_a_problem(
    head: Callable[[torch.Tensor], torch.Tensor], llama: Path
) -> None:
    before = read_weights(llama)[0].parameters
    edit_tensors(
        llama, lambda t: t.update({"lm_head.weight": head(t["model.embed_tokens.weight"])})
    )
    weights, problems = read_weights(llama)
    assert weights.parameters > before
    assert any("lm_head.weight is another than model.embed_tokens.weight" in p for p in problems)


def test_per_layer_shapes_come_from_the_tensors(pruned: Path) -> None:
    artefact = inspect(pruned)
    assert artefact.kind == "pruned"
    assert artefact.problems == ()
    assert artefact.weights is not None
    assert artefact.weights.layers == (LayerShape(2, 1, 8, 32), LayerShape(0, 0, 8, 48))
    assert artefact.weights.kv_bytes_per_token == 2 * 8 * 4
    assert artefact.recipe == "method: {kind: [tyr]}\n"


def test_uneven_query_heads_are_taken_from_the_config_if_they_add_up(pruned: Path) -> None:
    # Layer 0 gets its second KV head back, which then serves one of three query heads.
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        for name, rows in (("q", 24), ("k", 16), ("v", 16)):
            tensors[f"{FIRST}self_attn.{name}_proj.weight"] = torch.zeros(rows, 32)
        tensors[f"{FIRST}self_attn.o_proj.weight"] = torch.zeros(32, 24)

    edit_tensors(pruned, widen)
    shapes = per_layer(3, 2, 32)
    edit_config(pruned, per_layer_config=shapes)
    assert inspect(pruned).problems == ("layer 0: 3 query heads do not share 2 KV heads evenly",)
    shapes["0"]["query_groups"] = [2, 1]
    edit_config(pruned, per_layer_config=shapes)
    artefact = inspect(pruned)
    assert artefact.problems == () and artefact.weights is not None
    assert artefact.weights.layers[0] == LayerShape(3, 2, 8, 32, (2, 1))
    assert artefact.as_dict()["weights"]["layers"][0]["query_groups"] == [2, 1]
    for wrong in ([1, 1], [3], [3, 0], "2+1", [True, 2]):
        shapes["0"]["query_groups"] = wrong
        edit_config(pruned, per_layer_config=shapes)
        (problem,) = inspect(pruned).problems
        assert problem == (
            f"layer 0: config.json says query_groups {wrong!r}; the tensors hold 3 query heads on "
            "2 KV heads"
        )


def test_an_untouched_build_has_no_problems_and_a_verdict(build: Path) -> None:
    artefact = inspect(build)
    assert (artefact.kind, artefact.passed, artefact.problems) == ("build", True, ())
    content = json.loads(json.dumps(artefact.as_dict(), allow_nan=False))
    assert content["weights"]["layers"][1] == LayerShape(0, 0, 8, 48).as_dict()


@pytest.mark.parametrize(
    "changes, complaint",
    [
        (
            {"num_attention_heads": 8},
            "layer 0: config.json says 8 query heads; the tensors hold 4",
        ),
        (
            {"num_key_value_heads": 4},
            "layer 1: config.json says 4 kv heads; the tensors hold 2",
        ),
        ({"intermediate_size": 64}, "layer 0: config.json says 64 ffn; the tensors hold 48"),
        ({"num_hidden_layers": 1}, "config.json says 1 layers; the tensors hold 2"),
        (
            {"num_hidden_layers": 3},
            "layer 2: config.json says 4 query heads; the tensors hold 0",
        ),
        ({"num_hidden_layers": 10**12}, "config.json has num_hidden_layers: 1000000000000"),
        ({"head_dim": 24}, "layer 0: 32 rows are not whole heads of head_dim 24"),
        (
            {"vocab_size": 1000},
            "model.embed_tokens.weight has shape [300, 32]; config.json says [1000, 32]",
        ),
        (
            {"tie_word_embeddings": False},
            "lm_head.weight is missing, and config.json does not tie it to the embedding",
        ),
        (
            {"per_layer_config": {"2": {}}},
            "config.json has a per_layer_config that is not of its 2 layers",
        ),
    ],
)
def test_a_config_that_its_tensors_do_not_bear_out_is_a_problem(
    llama: Path, changes: dict[str, Any], complaint: str
) -> None:
    edit_config(llama, **changes)
    assert complaint in inspect(llama).problems


@pytest.mark.parametrize(
    "name, complaint",
    [
        ("mlp.up_proj.weight", "layer 0: mlp.up_proj is missing"),
        (
            "input_layernorm.weight",
            "layer 0: input_layernorm is missing for attention",
        ),
    ],
)
def test_half_a_sublayer_is_a_problem(llama: Path, name: str, complaint: str) -> None:
    edit_tensors(llama, lambda tensors: tensors.pop(FIRST + name))
    assert complaint in inspect(llama).problems


def test_a_swapped_shard_is_a_problem(llama: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(llama)
    (llama / WEIGHTS).unlink()
    model.save_pretrained(llama, max_shard_size="20KB")
    first, second, *_ = sorted(llama.glob("model-*.safetensors"))
    assert inspect(llama).problems == ()
    first.write_bytes(second.read_bytes())
    assert any(
        problem.startswith(f"{first.name} is not the shard that the index describes")
        for problem in inspect(llama).problems
    )


def test_a_graph_by_itself_is_held_against_its_list_of_files(tmp_path: Path) -> None:
    files = {"config.json": b"{}", "model.onnx": b"graph", "model.onnx.data": b"weights"}
    listed = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in files.items()
    }
    (tmp_path / "prunec").mkdir()
    (tmp_path / "prunec" / "files.json").write_text(json.dumps({"files": listed}))
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    found = inspect(tmp_path)
    assert found.weights is None and found.problems == ()
    (tmp_path / "model.onnx.data").write_bytes(b"Weights")
    [problem] = inspect(tmp_path).problems
    assert problem.startswith("model.onnx.data was changed")


def test_every_change_of_a_build_is_told_with_its_file(build: Path) -> None:
    weights = build / "hf" / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (build / "hf" / "tokenizer_config.json").unlink()
    (build / "report" / "notes.txt").write_text("mine")
    with (build / "report" / "report.json").open("a") as file:
        file.write("\n")
    problems = check_manifest(build)
    assert [problem.split(" ", 1)[0] for problem in problems] == [
        "hf/model.safetensors",
        "hf/tokenizer_config.json",
        "report/report.json",
        "report/notes.txt",
    ]
    assert [word in problem for word, problem in zip(
        ("SHA-256", "missing", "bytes", "not listed"), problems, strict=True
    )] == [True] * 4  # fmt: skip
    assert set(problems) <= set(inspect(build).problems)


def test_a_manifest_that_points_out_of_the_build_is_not_followed(build: Path) -> None:
    outside = build.parent / "secret"
    outside.write_text("x")
    entry = {"sha256": hashlib.sha256(b"x").hexdigest(), "bytes": 1}
    manifest = json.loads((build / "manifest.json").read_text())
    manifest["files"]["../secret"] = entry
    (build / "manifest.json").write_text(json.dumps(manifest))
    assert check_manifest(build) == ["manifest.json lists a file outside its folder: '../secret'"]


def test_a_build_that_was_cut_short_is_told_as_one(build: Path) -> None:
    (build / "manifest.json").unlink()
    (build / "report" / "report.json").unlink()
    problems = inspect(build).problems
    assert "manifest.json is missing" in problems[0]
    assert "report.json is missing" in problems[1]


def test_a_report_that_boasts_is_a_problem(build: Path) -> None:
    path = build / "report" / "report.json"
    report = json.loads(path.read_text())
    report["pruned"]["parameters"] = 1000
    path.write_text(json.dumps(report))
    write_manifest(build)
    (problem,) = inspect(build).problems
    assert problem.startswith("report/report.json says 1000 parameters; the files hold ")


def damage_nothing_but_remove(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def cut_short(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-7])


def not_safetensors(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"\xff" * 64)


def deep_config(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


def index_elsewhere(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../other.safetensors"}})
    )


@pytest.mark.parametrize(
    "damage, complaint",
    [
        (damage_nothing_but_remove, "no safetensors weights"),
        (cut_short, "its header promises"),
        (not_safetensors, "not a safetensors file"),
        (deep_config, r"config\.json cannot be read"),
        (index_elsewhere, "outside its folder"),
    ],
)
def test_a_damaged_model_is_an_error_that_names_the_file(
    llama: Path, damage: Callable[[Path], None], complaint: str
) -> None:
    damage(llama)
    with pytest.raises(ValidationError, match=complaint):
        inspect(llama)


def test_a_damaged_model_in_a_build_is_a_problem_among_the_others(build: Path) -> None:
    cut_short(build / "hf")
    artefact = inspect(build)
    assert artefact.weights is None
    assert any("its header promises" in problem for problem in artefact.problems)


def test_what_is_no_artefact_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, complaint in (
        (tmp_path, "neither a build nor a model"),
        (tmp_path / "file", "is not a folder"),
        (tmp_path / "gone", "does not exist"),
    ):
        with pytest.raises(ValidationError, match=complaint) as caught:
            inspect(path)
        assert caught.value.hint


def test_the_terminal_shows_layers_against_the_dense_model_and_the_recipe(build: Path) -> None:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    (build / "extra").write_text("")
    render_artefact(inspect(build), console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"{build}: a build, gates passed" in shown.replace("\n", "")
    assert "2/4" in shown and "1/2" in shown and "32/48" in shown
    assert "method: {kind: [tyr]}" in shown  # brackets are no markup
    assert "problem extra is not listed in manifest.json" in shown


def test_an_artefact_by_itself_tells_which_of_its_files_were_changed(pruned: Path) -> None:
    weights = (pruned / "model.safetensors").read_bytes()
    entry = {"sha256": hashlib.sha256(weights).hexdigest(), "bytes": len(weights)}
    listing = {"files": {"model.safetensors": entry}}
    (pruned / "prunec" / "files.json").write_text(json.dumps(listing), encoding="utf-8")
    (pruned / "notes.txt").write_text("a file of its user's")
    assert inspect(pruned).problems == ()
    # Another model's weights of the very same shapes.
    (pruned / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert inspect(pruned).problems == (
        "model.safetensors was changed: its SHA-256 is not that of prunec/files.json",
    )


def test_weights_that_are_no_safetensors_with_an_index_are_told_from_each_other(
    llama: Path,
) -> None:
    (llama / "model.safetensors").rename(llama / "model-00001-of-00002.safetensors")
    with pytest.raises(ValidationError, match=r"and no model\.safetensors\.index\.json") as caught:
        inspect(llama)
    assert "save_pretrained" in str(caught.value.hint)
    (llama / "model-00001-of-00002.safetensors").rename(llama / "pytorch_model.bin")
    with pytest.raises(ValidationError, match="as pickles only"):
        inspect(llama)
    (llama / "pytorch_model.bin").unlink()
    with pytest.raises(ValidationError, match="has no safetensors weights"):
        inspect(llama)
