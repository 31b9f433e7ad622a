# SPDX-License-Identifier: Apache-2.0
"""What SECURITY.md promises of tokens, of the hub and of folders that others have made."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest

from prunec.compiler.diagnostics import BuildError, UserError
from prunec.compiler.recipe_file import load_recipe
from prunec.compiler.secrets import redacted

Run = Callable[..., "subprocess.CompletedProcess[str]"]

TOKEN = "hf_" + "Q7zk2mPw" * 4
UNIFORM = ("--set", "method={kind: uniform}", "--set", "search=null", "--set", "validate=null")


def test_a_token_of_the_environment_is_written_nowhere(
    recipe: Path, prunec: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_API_KEY"):
        monkeypatch.setenv(name, TOKEN)
    done = prunec("build", recipe, "--output", tmp_path, *UNIFORM)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 20
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    "secret",
    [
        TOKEN,
        "ghp_" + "a1B2" * 9,
        "https://someone:hunter2@example.org/x",
        "https://example.org/x?token=abcdef",
    ],
)
@pytest.mark.parametrize("place", ["value", "comment", "option"])
def test_a_token_in_a_recipe_is_refused_and_not_repeated(
    secret: str, place: str, recipe: Path, tmp_path: Path
) -> None:
    text = recipe.read_text()
    options = []
    if place == "value":
        text = text.replace("def self", f"def {secret} self")
    elif place == "comment":
        text = f"# mine: {secret}\n{text}"
    else:
        options = [f"validate.completion.prompt={secret}"]
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_recipe(path, options)
    [*_, mistake] = caught.value.diagnostics  # the option is told last
    assert "looks like an access token" in mistake.message
    hidden = secret.removeprefix("https://").partition("@")[0].rpartition("token=")[2]
    assert hidden not in mistake.render() and mistake.where is not None


def test_what_is_no_token_is_left_alone() -> None:
    for text in (
        "org/hf_model",
        "hf_transformer_8b",
        "http://host:80/a@b",
        "a: b@c",
        "risk-taking",
    ):
        assert redacted(text) == text
    error = BuildError(f"https://me:hunter2@host/x: 401 with {TOKEN}")
    assert str(error) == "https://***@host/x: 401 with ***"


@pytest.fixture
def snapshot(tiny_llama: Callable[..., Path], tmp_path: Path) -> Path:
    """A model in the hub's cache: links into its blobs, in a folder named by its commit."""
    home = tmp_path / "models--org--tiny"
    folder = home / "snapshots" / ("0123456789abcdef" * 2 + "01234567")
    folder.mkdir(parents=True)
    (home / "blobs").mkdir()
    for path in tiny_llama().iterdir():
        blob = home / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blob)
        (folder / path.name).symlink_to(Path("..", "..", "blobs", blob.name))
    return folder


def test_the_commit_of_a_model_of_the_hub_is_in_the_manifest_and_the_card(
    recipe: Path,
    prunec: Run,
    snapshot: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def download(repo: str, *, revision: str | None, **_: object) -> str:
        asked.append((repo, revision))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model = "model={source: org/tiny, revision: main, dtype: float32}"
    output = tmp_path / "out"
    done = prunec("build", recipe, "--output", output, *UNIFORM, "--set", model)
    assert done.returncode == 0, done.stderr
    assert asked == [("org/tiny", "main"), ("org/tiny", snapshot.name)]  # files, then weights
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["model"] == {"source": "org/tiny", "commit": snapshot.name}
    assert f"`org/tiny` (commit `{snapshot.name}`)" in (output / "hf" / "README.md").read_text()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_model_whose_files_are_links_out_of_its_folder_is_refused(
    name: str, tiny_llama: Callable[..., Path], recipe: Path, prunec: Run, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_llama(), tmp_path / "model")
    (model / name).rename(tmp_path / "elsewhere")
    (model / name).symlink_to(tmp_path / "elsewhere")
    done = prunec("plan", recipe, "--set", f"model={{source: {model}}}")
    assert done.returncode == 2
    assert f"{name} is a link that leaves its folder" in done.stderr


def test_pickles_are_never_opened(
    tiny_llama: Callable[..., Path], recipe: Path, prunec: Run, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_llama(), tmp_path / "model")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    done = prunec(
        "build", recipe, "--output", tmp_path / "out", "--set", f"model={{source: {model}}}"
    )
    assert done.returncode == 2
    assert "pickles only (pytorch_model.bin), which prunec never opens" in done.stderr
