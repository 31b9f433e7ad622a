# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
import sysconfig
from itertools import combinations
from pathlib import Path

import pytest

from prunec.compiler.calibration.python_stdlib import (
    EVALUATION,
    SEARCH,
    SPLITS,
    files,
    split_of,
)

ROOT = Path(sysconfig.get_paths()["stdlib"])


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Path]]:
    return {split: files(split) for split in SPLITS}


def _modules(paths: list[Path]) -> set[str]:
    return {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in paths}


def test_no_file_or_module_is_in_two_splits(splits: dict[str, list[Path]]) -> None:
    for one, other in combinations(splits.values(), 2):
        assert not set(one) & set(other)
        assert not _modules(one) & _modules(other)
    for paths in splits.values():
        assert len(set(paths)) == len(paths)
        assert paths == sorted(paths)


def test_every_module_that_is_held_out_exists_on_this_interpreter(
    splits: dict[str, list[Path]],
) -> None:
    assert sys.stdlib_module_names >= SEARCH | EVALUATION
    assert _modules(splits["search"]) == SEARCH
    assert _modules(splits["evaluation"]) == EVALUATION


def test_every_split_holds_enough_to_work_with(splits: dict[str, list[Path]]) -> None:
    size = {split: sum(path.stat().st_size for path in splits[split]) for split in SPLITS}
    assert size["calibration"] > 5_000_000
    assert min(size["search"], size["evaluation"]) > 400_000


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("csv.py", "evaluation"),
        ("csv/__init__.py", "evaluation"),
        ("functools.py", "search"),
        ("json/decoder.py", "calibration"),
        ("json/csv.py", "calibration"),
        ("test/test_csv.py", None),
        ("json/tests/test_dump.py", None),
        ("csv/test/x.py", None),
        ("site-packages/csv.py", None),
        ("encodings/cp037.py", None),
        ("_sysconfigdata__linux_x86_64-linux-gnu.py", None),
        ("config-3.11-x86_64-linux-gnu/python-config.py", None),
    ],
)
def test_a_file_belongs_to_its_top_level_module(path: str, split: str | None) -> None:
    assert split_of(Path(path)) == split


def test_only_source_files_under_the_root_are_taken(tmp_path: Path) -> None:
    for name in ("csv.py", "csv.pyc", "ast.py", "test/ast.py", "uuid/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert {
        split: [p.relative_to(tmp_path) for p in files(split, tmp_path)] for split in SPLITS
    } == {
        "calibration": [Path("ast.py")],
        "search": [Path("uuid/__init__.py")],
        "evaluation": [Path("csv.py")],
    }
