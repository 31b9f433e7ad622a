# SPDX-License-Identifier: Apache-2.0
"""`prunec verify`: what is intact is said to be, and every kind of damage is named."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

Run = Callable[..., "subprocess.CompletedProcess[str]"]

UNIFORM = ("--set", "method={kind: uniform}", "--set", "search=null")


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "copy", ignore=shutil.ignore_patterns(".store"))


@pytest.fixture
def found(prunec: Run) -> Callable[[Path], tuple[int, list[str], list[str]]]:
    """Exit code, problems and notes."""

    def verify(folder: Path) -> tuple[int, list[str], list[str]]:
        done = prunec("verify", folder, "--json")
        said = json.loads(done.stdout)
        assert said["intact"] == (done.returncode == 0)
        return done.returncode, said["problems"], said["notes"]

    return verify


Found = Callable[[Path], tuple[int, list[str], list[str]]]


def reseal(folder: Path) -> None:
    """Bring the lists of hashes up to what lies there: only opening the files shows damage now."""
    for listing in (folder / "hf" / "prunec" / "files.json", folder / "manifest.json"):
        base = folder if listing.name == "manifest.json" else folder / "hf"
        listed = json.loads(listing.read_text())
        for name in listed["files"]:
            data = (base / name).read_bytes()
            listed["files"][name] = {
                "sha256": hashlib.sha256(data).hexdigest(),
                "bytes": len(data),
            }
        listing.write_text(json.dumps(listed))


def test_a_build_and_its_artefact_by_itself_are_intact(
    copy: Path, found: Found, prunec: Run
) -> None:
    assert found(copy) == (0, [], [])
    card = copy / "hf" / "README.md"
    card.write_text("Mine.\n")  # is its users' to edit
    assert found(copy) == (0, [], [])
    assert found(copy / "hf") == (0, [], [])
    done = prunec("verify", copy)
    assert done.returncode == 0 and done.stdout.strip() == f"{copy}: a build, intact"


def flip_a_weight(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda at: flip_a_weight(at / "hf/model.safetensors"), "hf/model.safetensors was changed"),
        (lambda at: (at / "hf/tokenizer.json").unlink(), "hf/tokenizer.json is missing"),
        (lambda at: (at / "hf/extra.py").write_text("1"), "hf/extra.py is not listed"),
        (lambda at: (at / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda at: (at / "manifest.json").write_text("{"), "manifest.json cannot be read"),
        (lambda at: (at / "report/report.md").write_text("passed"), "report/report.md was changed"),
    ],
)
def test_what_is_not_as_it_was_written_is_named(
    damage: Callable[[Path], object], says: str, copy: Path, found: Found
) -> None:
    damage(copy)
    code, problems, _ = found(copy)
    assert code == 1
    assert any(says in problem for problem in problems), problems


def put(value: float) -> Callable[[Path], None]:
    def damage(artefact: Path) -> None:
        path = artefact / "model.safetensors"
        tensors = load_file(path)
        tensors["model.layers.1.self_attn.q_proj.weight"][0, 0] = value
        save_file(tensors, path, metadata={"format": "pt"})

    return damage


def drop_the_norm(artefact: Path) -> None:
    tensors = load_file(artefact / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, artefact / "model.safetensors", metadata={"format": "pt"})


def narrow_the_config(artefact: Path) -> None:
    config = json.loads((artefact / "config.json").read_text())
    (artefact / "config.json").write_text(json.dumps(config | {"hidden_size": 32}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (put(torch.nan), "q_proj.weight holds a NaN or an infinity"),
        (put(torch.inf), "q_proj.weight holds a NaN or an infinity"),
        (drop_the_norm, "model.norm.weight is absent; by config.json it is (64,)"),
        (narrow_the_config, "config.json says"),
        (lambda at: (at / "tokenizer.json").write_text("{}"), "tokenizer of"),
        (lambda at: (at / "model.safetensors").write_bytes(b"\0" * 40), "not a safetensors file"),
    ],
)
def test_what_cannot_be_used_is_found_though_the_hashes_agree(
    damage: Callable[[Path], None], says: str, copy: Path, found: Found
) -> None:
    damage(copy / "hf")
    reseal(copy)
    code, problems, _ = found(copy)
    assert code == 1
    assert any(says in problem for problem in problems), problems


def test_a_checkpoint_of_anybody_is_opened_and_has_no_hashes(
    tiny_llama: Callable[..., Path], tmp_path: Path, found: Found
) -> None:
    folder = shutil.copytree(tiny_llama(shard_bytes=20_000), tmp_path / "theirs")
    code, problems, notes = found(folder)
    assert (code, problems) == (0, [])
    assert notes == [f"{folder} has no hashes: that its files open is all that can be said"]
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    code, [problem, *_], _ = found(folder)
    assert code == 1 and shard.name in problem


def test_a_snapshot_of_the_hubs_cache_is_held_against_the_names_of_its_blobs(
    tiny_llama: Callable[..., Path], tmp_path: Path, found: Found
) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / ("c" * 40), None
    snapshot.mkdir(parents=True)
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    for path in tiny_llama().iterdir():
        data = path.read_bytes()
        name = hashlib.sha256(data).hexdigest()
        if path.suffix != ".safetensors":
            name = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        (blobs / name).write_bytes(data)
        (snapshot / path.name).symlink_to(blobs / name)
    assert found(snapshot) == (0, [], [])
    flip_a_weight((snapshot / "model.safetensors").resolve())
    code, problems, _ = found(snapshot)
    assert code == 1
    assert problems == ["model.safetensors was changed: it is not what the hub's cache calls it"]


def test_code_of_others_is_not_run_and_that_is_said(copy: Path, found: Found) -> None:
    trap = copy / "hf" / "modeling_prunec.py"
    trap.write_text(f"import pathlib; pathlib.Path({str(copy / 'ran')!r}).touch()")
    _, problems, notes = found(copy / "hf")
    assert any("modeling_prunec.py was changed" in problem for problem in problems)
    assert any("did not write" in note for note in notes)
    assert not (copy / "ran").exists()


def test_every_point_of_a_sweep_is_verified(copy: Path, found: Found, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    for name in ("a", "b"):
        shutil.copytree(copy, sweep / name)
    points: list[dict[str, str | None]] = [{"folder": name, "error": None} for name in ("a", "b")]
    points.append({"folder": "c", "error": "there is no such layout"})
    (sweep / "sweep.json").write_text(json.dumps({"points": points}))
    assert found(sweep) == (0, [], ["c was not built: there is no such layout"])
    flip_a_weight(sweep / "b" / "hf" / "model.safetensors")
    shutil.rmtree(sweep / "a")
    code, problems, _ = found(sweep)
    assert code == 1
    assert problems[0] == "a is missing"
    assert all(problem.startswith("b: ") for problem in problems[1:]) and problems[1:]
    (sweep / "sweep.json").write_text(json.dumps({"points": [{"folder": "../copy"}]}))
    assert found(sweep)[1] == ["sweep.json has a point outside its folder: '../copy'"]


def test_what_cannot_be_verified_is_no_verdict(prunec: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "nowhere", tmp_path / "file", tmp_path):
        done = prunec("verify", folder)
        assert done.returncode == 2 and str(folder) in done.stderr and done.stdout == ""


def test_a_graph_and_the_weights_beside_it_are_opened(
    recipe: Path, prunec: Run, found: Found, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    export = ("--set", "export=[{kind: onnx}]", "--set", "validate=null")
    built = prunec("build", recipe, "--output", tmp_path / "out", *UNIFORM, *export)
    assert built.returncode == 0, built.stderr
    assert found(tmp_path / "out") == (0, [], [])
    graph = tmp_path / "out" / "onnx"
    weights = (graph / "model.onnx.data").read_bytes()
    shutil.rmtree(graph / "prunec")  # no hashes: the graph has to speak for itself
    assert found(graph)[0] == 0
    (graph / "model.onnx.data").write_bytes(weights[:-100])
    code, problems, _ = found(graph)
    assert code == 1 and problems
    (graph / "model.onnx.data").write_bytes(b"\xff" * len(weights))  # NaN
    code, problems, _ = found(graph)
    assert code == 1 and any("holds a NaN" in problem for problem in problems)
