# SPDX-License-Identifier: Apache-2.0
"""Whatever a recipe or a checkpoint holds, it is taken or refused in one sentence: no other error,
no hang, nothing written and nobody connected to. `benchmarks/fuzz.py` draws many more of them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import fuzzing
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prunec.compiler.calibration import sources
from prunec.compiler.diagnostics import UserError
from prunec.compiler.recipe_file import load_recipe

MANY = settings(
    max_examples=250,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
DRAWS = st.randoms(use_true_random=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("fuzz")
    with mock.patch.object(sources, "file_identity", sources.file_identity):  # is replaced
        fuzzing.make_folder(folder)
        yield folder


@MANY
@given(draw=DRAWS)
def test_any_recipe_is_planned_or_refused(folder: Path, draw: random.Random) -> None:
    path = folder / "recipe.yaml"
    path.write_bytes(fuzzing.recipe_bytes(draw))
    with fuzzing.nothing_written():
        fuzzing.try_recipe(path)


@MANY
@given(draw=DRAWS)
def test_any_checkpoint_is_read_or_refused(folder: Path, draw: random.Random) -> None:
    fuzzing.damage_checkpoint(folder / "damaged", draw)
    with fuzzing.nothing_written():
        fuzzing.try_checkpoint(folder / "damaged")


def test_a_good_part_of_the_drawn_inputs_is_sound(folder: Path) -> None:
    planned = read = 0
    path = folder / "recipe.yaml"
    for seed in range(60):
        path.write_text(yaml.safe_dump(fuzzing.Writer(random.Random(seed), 0.0).recipe()))
        planned += fuzzing.try_recipe(path) == "planned"
        fuzzing.damage_checkpoint(folder / "damaged", random.Random(seed))
        read += fuzzing.try_checkpoint(folder / "damaged") == "read"
    assert planned >= 10 and read >= 2


def test_what_would_write_or_connect_is_noticed(folder: Path) -> None:
    for forbidden in (
        lambda: (folder / "written").write_text("x"),
        lambda: (folder / "made").mkdir(),
        lambda: (folder / "text.txt").open("a").close(),
    ):
        with pytest.raises(AssertionError), fuzzing.nothing_written():
            forbidden()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: &a [x, x]\nb: &b [*a, *a]\n", "anchors and aliases"),
        ("a: " + "[" * 33 + "]" * 33, "at most 32 levels deep"),
        ("a:\n" + "- x\n" * 10_000, "at most 10000 values"),
        ("# " + "x" * 2**20, "at most 1048576 bytes"),
        ("a: " + "9" * 5000, "is too large"),
        ("a: !!python/object/apply:os.system [x]", "tags such as"),
    ],
)
def test_yaml_has_limits(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert says in caught.value.diagnostics[0].message


def test_a_sound_checkpoint_is_read(folder: Path) -> None:
    header, body = fuzzing.sound_header()
    fuzzing.write_model(folder / "sound", fuzzing.CONFIG, header, body)
    assert fuzzing.try_checkpoint(folder / "sound") == "read"
    for layers in (10**12, 2**80):  # nothing of its size is made
        config = json.loads(json.dumps(fuzzing.CONFIG | {"num_hidden_layers": layers}))
        fuzzing.write_model(folder / "sound", config, header, body)
        with fuzzing.nothing_written():
            assert fuzzing.try_checkpoint(folder / "sound") == "refused"
