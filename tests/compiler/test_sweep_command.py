# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import yaml

from prunec.compiler.diagnostics import UserError
from prunec.compiler.sweep_command import grid


def varied(*settings: str) -> list[tuple[str, ...]]:
    return [point.varied for point in grid(settings)]


def test_the_last_setting_changes_fastest_and_single_values_are_no_part_of_the_label() -> None:
    points = grid(["a.b=1, 2", "method.kind=tyr", "c=x,y"])
    assert [point.label for point in points] == [
        "a.b=1, c=x",
        "a.b=1, c=y",
        "a.b=2, c=x",
        "a.b=2, c=y",
    ]
    assert points[1].overrides == ("a.b=1", "method.kind=tyr", "c=y")
    assert points[1].settings == {"a.b": "1", "c": "y"}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.25,0.5", [0.25, 0.5]),
        ("[a, b],[c]", [["a", "b"], ["c"]]),
        (
            "{kind: tyr, rounds: 2},{kind: uniform}",
            [{"kind": "tyr", "rounds": 2}, {"kind": "uniform"}],
        ),
        ("{files: ['a,b', \"c]\"]}, null", [{"files": ["a,b", "c]"]}, None]),
        ("'a, b',\"c, d\"", ["a, b", "c, d"]),
        ("'it''s, this',x", ["it's, this", "x"]),
        (r'"a\", b","c\\",d', ['a", b', "c\\", "d"]),
        ("don't,stop", ["don't", "stop"]),
        ("f(a[0],def g(", ["f(a[0]", "def g("]),
        ("{a: {b: [1, 2]}}, 3", [{"a": {"b": [1, 2]}}, 3]),
    ],
)
def test_commas_separate_where_yaml_would_have_values_end(text: str, values: list[object]) -> None:
    found = [setting.partition("=")[2] for [setting] in varied(f"key={text}")]
    assert [yaml.safe_load(value) for value in found] == values


@pytest.mark.parametrize("settings", [[], ["a=1"], ["a"], ["a='1,2'"], ["a=[1,2]"]])
def test_a_grid_of_one_point_is_refused(settings: list[str]) -> None:
    with pytest.raises(UserError, match="needs a --set with several values"):
        grid(settings)


def test_what_only_folders_cannot_tell_apart_gets_a_digest() -> None:
    folders = [point.folder for point in grid(["a=x/y,x y,z,Z,../../up"])]
    assert len({folder.casefold() for folder in folders}) == 5
    assert all(folder.startswith(("a=x-y-", "a=z-", "a=Z-", "a=..-")) for folder in folders)
    assert not any("/" in folder for folder in folders)
    assert folders == [point.folder for point in grid(["a=x/y,x y,z,Z,../../up"])]
    assert len(grid([f"a={'x' * 300}1,{'x' * 300}2"])[0].folder) < 120
