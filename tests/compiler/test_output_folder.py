# SPDX-License-Identifier: Apache-2.0
"""Which folders a build or a sweep may write into: what prunec did not write is never replaced."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from prunec.compiler.diagnostics import BuildError
from prunec.compiler.output_folder import OutputFolder, check_sweep_place

FINGERPRINT = "0123456789abcdef0123"


def put(folder: Path, **files: str) -> Path:
    """Files by their paths, in which `__` stands for a slash and `_dot_` for a dot."""
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def listing(*names: str) -> str:
    return json.dumps({"files": {name: {"sha256": "0", "bytes": 1} for name in names}})


def finished(folder: Path, *, listed: bool = True) -> Path:
    """A folder as a finished build leaves it; `listed`: with the artefact's own list of files."""
    put(folder, hf__config_dot_json="{}", hf__README_dot_md="card", report__report_dot_md="told")
    put(folder, report__report_dot_json='{"prunec_version": "0.1.0"}')
    if listed:
        put(folder, hf__prunec__files_dot_json=listing("config.json"))
    files = {
        path.relative_to(folder).as_posix(): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
        }
        for path in folder.rglob("*")
        if path.is_file()
    }
    manifest = {"fingerprint": FINGERPRINT, "steps": {}, "files": files}
    return put(folder, manifest_dot_json=json.dumps(manifest))


def interrupted(folder: Path) -> Path:
    """A folder as a build leaves it that was killed while it wrote its report."""
    (folder / ".store" / FINGERPRINT).mkdir(parents=True)
    (folder / ".scratch").mkdir()
    put(folder, hf__config_dot_json="{}", hf__README_dot_md="card")
    put(folder, hf__prunec__files_dot_json=listing("config.json"))
    put(folder, report__report_dot_json='{"prunec_version": "0.1.0"}', report__report_dot_md="")
    return put(folder, report___dot_report_dot_html_dot_partial="<", _dot_hf_dot_partial__a="")


def refusal(folder: Path, *exports: str, kept: tuple[str, ...] = ()) -> str:
    """Why a build is turned away; nothing where it is not."""
    before = {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}
    try:
        OutputFolder(folder, folder / ".store").check(exports or ("hf",), kept)
    except BuildError as error:
        assert error.hint
        return error.message
    finally:
        assert {path: path.lstat().st_mtime_ns for path in folder.rglob("*")} == before
    return ""


def test_builds_go_on_in_folders_of_their_own(tmp_path: Path) -> None:
    assert not refusal(tmp_path / "nowhere")
    assert not refusal(put(tmp_path / "project", notes="mine", src__code="mine"))
    assert not refusal(finished(tmp_path / "finished"))
    assert not refusal(interrupted(tmp_path / "interrupted"))
    # Of a version that wrote no list into its artefacts.
    assert not refusal(finished(tmp_path / "older", listed=False))


@pytest.mark.parametrize("name", ["config.json", "model.onnx", "prunec/files.json"])
def test_a_model_folder_is_never_an_output(name: str, tmp_path: Path) -> None:
    for folder in (finished(tmp_path / "build"), interrupted(tmp_path / "interrupted")):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
        assert f"{folder} is a model folder" in refusal(folder)
        with pytest.raises(BuildError, match="is a model folder"):
            check_sweep_place(folder)


@pytest.mark.parametrize("mark", ["manifest.json", ".store/cache.db", ".store"])
def test_a_name_alone_makes_no_folder_a_build(mark: str, tmp_path: Path) -> None:
    put(tmp_path, hf__model_dot_safetensors="mine")
    if mark == ".store":
        (tmp_path / mark).mkdir()
    else:
        (tmp_path / mark).parent.mkdir(exist_ok=True)
        (tmp_path / mark).write_text('{"name": "an extension", "version": "1.0"}')
    told = refusal(tmp_path)
    assert "exists, and is not of a build" in told or "is not of a build; it would be" in told


@pytest.mark.parametrize("name", ["manifest.json", ".scratch/a", "report/report.md", ".hf.old/a"])
def test_what_has_a_name_of_ours_and_is_not_is_told(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    assert f"{tmp_path / name.split('/')[0]} exists, and is not of a build" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["hf/notes.txt", "hf/sub/a.txt", "report/notes.txt"])
@pytest.mark.parametrize("make", [finished, interrupted])
def test_own_files_among_those_of_a_build_are_told(make: object, name: str, tmp_path: Path) -> None:
    assert callable(make)
    make(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    assert f"{tmp_path / name} is not of a build" in refusal(tmp_path, kept=("hf",))


def test_own_files_beside_lm_evals_are_told(tmp_path: Path) -> None:
    finished(tmp_path)
    put(tmp_path, **{"report__lm-eval__mine": "mine"})
    assert "lm-eval/mine is not of a build" in refusal(tmp_path)


def test_an_edited_card_is_not_replaced_by_that_of_another_model(tmp_path: Path) -> None:
    (finished(tmp_path) / "hf" / "README.md").write_text("edited")
    assert "README.md was edited" in refusal(tmp_path)
    assert not refusal(tmp_path, kept=("hf",))


def test_an_export_of_an_earlier_build_does_not_pass_for_one_of_this(tmp_path: Path) -> None:
    assert f"{tmp_path / 'hf'} is of an earlier build" in refusal(finished(tmp_path), "vllm")


def test_an_export_that_is_a_link_is_not_replaced(tmp_path: Path) -> None:
    finished(tmp_path / "build")
    (tmp_path / "build" / "hf").rename(tmp_path / "elsewhere")
    (tmp_path / "build" / "hf").symlink_to(tmp_path / "elsewhere")
    assert "exists, and is not of a build" in refusal(tmp_path / "build")


def test_a_build_and_a_sweep_do_not_share_a_folder(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="holds a build, and a sweep needs a folder of its own"):
        check_sweep_place(finished(tmp_path / "build"))
    put(tmp_path / "sweep", sweep_dot_json='{"schema_version": 1, "points": []}')
    check_sweep_place(tmp_path / "sweep")
    assert "holds a sweep" in refusal(tmp_path / "sweep")
    put(tmp_path / "other", sweep_dot_json='{"mine": 1}')
    with pytest.raises(BuildError, match="is not of a build"):
        check_sweep_place(tmp_path / "other")
