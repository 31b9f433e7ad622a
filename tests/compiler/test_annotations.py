# SPDX-License-Identifier: Apache-2.0
"""Annotations as a runner of GitHub Actions reads them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prunec.compiler.annotations import github_annotations
from prunec.compiler.diagnostics import BuildError, Diagnostic, UserError
from prunec.compiler.recipe_file import load_recipe


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout, in which a step of a workflow runs."""
    folder = tmp_path / "checkout"
    (folder / "recipes").mkdir(parents=True)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(folder))
    monkeypatch.chdir(folder)
    return folder


def unescaped(text: str, *, properties: bool = False) -> str:
    """As the runner undoes it, the per cent sign last."""
    if properties:
        text = text.replace("%3A", ":").replace("%2C", ",")
    return text.replace("%0D", "\r").replace("%0A", "\n").replace("%25", "%")


def read(text: str) -> list[tuple[dict[str, str], str]]:
    """Each line's properties and message; a line that is no command is an error."""
    found = []
    for line in text.splitlines():
        command = re.fullmatch(r"::error (.*?)::(.*)", line)
        assert command, line
        pairs = (pair.split("=", 1) for pair in command[1].split(","))
        properties = {key: unescaped(value, properties=True) for key, value in pairs}
        found.append((properties, unescaped(command[2])))
    return found


def test_a_mistake_is_shown_at_its_line_with_its_hint() -> None:
    found = Diagnostic("sparsity is 50 %, not 0.5", "recipes/a.yaml:5:13", "write a share")
    assert github_annotations([found]) == (
        "::error file=recipes/a.yaml,line=5,col=13,title=prunec::"
        "sparsity is 50 %25, not 0.5%0Ahint: write a share\n"
    )


def test_every_mistake_of_a_recipe_is_a_line(workspace: Path) -> None:
    recipe = workspace / "recipes" / "broken.yaml"
    recipe.write_text("schema_version: 2\nmodel: {sauce: here}\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_recipe(recipe, ["target.sparsity=half"])
    diagnostics = caught.value.diagnostics
    found = read(github_annotations(diagnostics))
    assert len(found) == len(diagnostics) > 2
    for (properties, message), diagnostic in zip(found, diagnostics, strict=True):
        assert diagnostic.message in message
        if str(diagnostic.where).startswith(str(recipe)):
            assert properties["file"] == "recipes/broken.yaml"
            place = f"{recipe}:{properties['line']}:{properties['col']}"
            assert place == diagnostic.where
        else:  # the option
            assert set(properties) == {"title"}
            assert message.startswith("--set target.sparsity=half: ")


@pytest.mark.parametrize(
    ("where", "file"),
    [
        ("a.yaml", "a.yaml"),
        ("a.yaml:3", "a.yaml"),
        ("../checkout/recipes/../a.yaml:1:2", "a.yaml"),
        ("{workspace}/recipes/a.yaml:1:2", "recipes/a.yaml"),
        ("/elsewhere/a.yaml:1:2", "/elsewhere/a.yaml"),
        ("odd, 100 %:name::x.yaml:1:2", "odd, 100 %:name::x.yaml"),
    ],
)
def test_files_are_named_from_the_checkout_where_they_lie_in_it(
    where: str, file: str, workspace: Path
) -> None:
    [(properties, message)] = read(
        github_annotations([Diagnostic("wrong", where.format(workspace=workspace))])
    )
    assert (properties["file"], message) == (file, "wrong")


def test_a_linked_recipe_stays_where_it_is_committed(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "real.yaml").write_text("")
    (workspace / "linked.yaml").symlink_to(tmp_path / "real.yaml")
    [(properties, _)] = read(github_annotations([Diagnostic("wrong", "linked.yaml:1:1")]))
    assert properties["file"] == "linked.yaml"


def test_without_a_workspace_files_are_named_as_they_were_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GITHUB_WORKSPACE")
    [(properties, _)] = read(github_annotations([Diagnostic("wrong", "./a.yaml:1:2")]))
    assert properties == {"file": "./a.yaml", "line": "1", "col": "2", "title": "prunec"}


def test_a_message_cannot_end_its_line_or_begin_a_command() -> None:
    odd = "a\r\n::stop-commands::x\n%0A"
    [(properties, message)] = read(github_annotations([Diagnostic(odd)]))
    assert (properties, message) == ({"title": "prunec"}, odd)


@pytest.mark.parametrize("value", [None, "", "false"])
def test_elsewhere_nothing_is_printed(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is None:
        monkeypatch.delenv("GITHUB_ACTIONS")
    else:
        monkeypatch.setenv("GITHUB_ACTIONS", value)
    assert github_annotations([Diagnostic("wrong", "a.yaml:1:2")]) == ""


def test_no_name_begins_a_line_that_a_runner_would_obey() -> None:
    mistake = Diagnostic("is bad\n::error::x\x1b[31m", "a\n::stop-commands::y.yaml", "do\r\n::stop")
    for told in (str(UserError(mistake)), str(BuildError(mistake.message, mistake.hint))):
        assert not [line for line in told.splitlines() if line.strip().startswith("::")]
        assert "\x1b" not in told and "\\x1b[31m" in told
