# SPDX-License-Identifier: Apache-2.0
"""What README shows is what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from prunec.compiler.cli import app
from prunec.compiler.diagnostics import UserError
from prunec.compiler.recipe_file import load_recipe

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_recipe_is_the_quickstart() -> None:
    shown, *_ = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    shipped = (ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(shown) == yaml.safe_load(shipped)


def test_what_is_shown_of_recipes_sections_is_legal(tmp_path: Path) -> None:
    _, *sections = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    recipe = yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8"))
    recipe["model"]["source"] = str(ROOT / "examples" / "pytiny")
    recipe["export"] = [{"kind": kind} for kind in ("hf", "onnx", "vllm")]
    for folder in ("my-tasks", "prose"):
        (tmp_path / folder).mkdir()
    (tmp_path / "prose" / "text.txt").write_text("Prose.", encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    for section in sections:
        recipe |= yaml.safe_load(section)
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    loaded = load_recipe(path)
    assert loaded.recover is not None and loaded.resources.memory == 6 * 2**30
    checks = loaded.validation
    assert checks is not None and checks.speed is not None and checks.abort_if is not None


def test_the_mistake_is_answered_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bad = Path("recipes/bad.yaml")
    bad.parent.mkdir()
    quickstart = (ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8")
    fields = yaml.safe_load(quickstart)
    lines = [f"# line {number}" for number in range(1, 6)]
    lines += ["target:", "  sparsity: 1.5"]
    rest = {key: value for key, value in fields.items() if key != "target"}
    rest["model"]["source"] = str(ROOT / "examples" / "pytiny")
    bad.write_text("\n".join(lines) + "\n" + yaml.safe_dump(rest), encoding="utf-8")
    (told,) = re.findall(r"^recipes/bad\.yaml:.*$", README, flags=re.MULTILINE)
    with pytest.raises(UserError) as caught:
        load_recipe(bad)
    (mistake,) = caught.value.diagnostics
    assert mistake.message == told.split(": ", 1)[1]
    assert mistake.where is not None and mistake.where.startswith("recipes/bad.yaml:7:")


def test_every_command_is_listed() -> None:
    commands = {
        command.name or command.callback.__name__
        for command in app.registered_commands
        if command.callback
    }
    assert commands == set(re.findall(r"\| `prunec (\w+)", README))
