# SPDX-License-Identifier: Apache-2.0
"""No field of a recipe is taken and ignored: a change of any alone gives another plan, or is
refused. The fields are found by walking the recipe, so that new ones are tried by themselves."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin
from unittest import mock

import pytest
import yaml
from pydantic import BaseModel

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import fuzzing

from prunec.compiler.calibration import sources
from prunec.compiler.diagnostics import BuildError, UserError
from prunec.compiler.planned import plan_recipe
from prunec.compiler.subject import subject_for_plan

#: What changes no step, and why that is right.
ELSEWHERE = {
    "resources": "says where and how fast, not what",
    "schema_version": "has one legal value",
    "validate.on_inconclusive": "is obeyed by the verdict (tests/end_to_end/test_gates.py)",
    "validate.abort_if": "is obeyed while the build runs (tests/end_to_end/test_gates.py)",
    "method.study": "says where trials are kept, not what they find",
}
#: Gates are obeyed by the verdict: tests/compiler/test_verdict.py, tests/end_to_end/test_gates.py.
GATES = ("min_", "max_ratio", "max_perplexity", "max_divergence", "max_drop", "max_bytes",
         "max_resident_ratio")  # fmt: skip

TEXT = {"kind": "text", "files": ["text.txt"]}
JUDGING = {"kind": "text", "files": ["judged.txt"]}
CALIBRATION = {"source": TEXT, "sequence_length": 8, "tokens": 256}
SEARCH = {"source": {"kind": "text", "files": ["other.txt"]}, "tokens": 256}
RECOVER = {"tokens": 256, "held_out": JUDGING, "held_out_tokens": 256}
ROWS = {"kind": "jsonl", "files": ["rows.jsonl"]}
COMMON: dict[str, Any] = {
    "schema_version": 1,
    "model": {"source": "model", "dtype": "float32"},
    "target": {"sparsity": 0.5, "multiple_of": 1},
    "export": [{"kind": "hf"}],
    "calibration": CALIBRATION,
}
METHODS: dict[str, Any] = {
    "magnitude": {"method": {"kind": "magnitude"}, "calibration": None},
    "uniform": {"method": {"kind": "uniform"}},
    "tyr": {"method": {"kind": "tyr"}, "search": SEARCH},
    "tyr, random": {"method": {"kind": "tyr"}, "search": SEARCH | {"searcher": "random"}},
    "tyr, relaxed": {
        "method": {"kind": "tyr", "rounds": 2},
        "search": SEARCH | {"searcher": "level_relaxation"},
    },
    "tyr, evolutionary": {
        "method": {"kind": "tyr"},
        "search": SEARCH | {"searcher": "evolutionary"},
    },
    "tyr, faithful": {"method": {"kind": "tyr", "faithful": True}, "search": SEARCH},
    "importance": {"method": {"kind": "importance"}},
    "importance, not refitted": {"method": {"kind": "importance", "refit": False}},
    "importance, of weights alone": {
        "method": {"kind": "importance", "refit": False, "metrics": {"magnitude_l2": 1.0}},
        "calibration": None,
    },
    "importance, mixed": {
        "method": {
            "kind": "importance",
            "metrics": {"wanda": 1.0, "obs": 0.5},
            "allocation": "influence",
        }
    },
    "adapruner": {"method": {"kind": "adapruner"}, "search": SEARCH},
    "adapruner, random": {
        "method": {"kind": "adapruner", "sampler": "random"},
        "search": SEARCH,
    },
    "adapruner, uniform": {"method": {"kind": "adapruner", "inner": "uniform"}, "search": SEARCH},
    "adapruner, tyr": {"method": {"kind": "adapruner", "inner": "tyr"}, "search": SEARCH},
    "adapruner, not refitted": {"method": {"kind": "adapruner", "refit": False}, "search": SEARCH},
    "adapruner, faithful": {"method": {"kind": "adapruner", "faithful": True}, "search": SEARCH},
    "lora": {
        "method": {"kind": "uniform"},
        "recover": RECOVER | {"kind": "lora"},
    },
    "blockwise": {
        "method": {"kind": "uniform"},
        "recover": {
            "kind": "blockwise",
            "tokens": 256,
            "held_out": JUDGING,
            "held_out_tokens": 256,
        },
    },
    "measured": {
        "method": {"kind": "uniform"},
        "validate": {
            "perplexity": {"source": JUDGING, "sequence_length": 8, "tokens": 256},
            "speed": {"runtimes": ["hf"]},
            "size": {},
            "parity": {},
            "completion": {"prompt": "def", "tokens": 4},
        },
    },
    "asked tasks": {
        "method": {"kind": "uniform"},
        "validate": {"tasks": {"names": ["python_names"]}},
    },
    "for vllm": {"method": {"kind": "uniform"}, "export": [{"kind": "vllm"}]},
    "for onnx": {"method": {"kind": "uniform"}, "export": [{"kind": "onnx"}]},
    "of rows": {"method": {"kind": "uniform"}, "calibration": CALIBRATION | {"source": ROWS}},
    "of its own text": {
        "method": {"kind": "uniform"},
        "calibration": CALIBRATION | {"source": {"kind": "self"}},
    },
    "of several texts": {
        "method": {"kind": "uniform"},
        "calibration": CALIBRATION
        | {
            "source": {
                "kind": "mix",
                "parts": {"rows": {"source": ROWS}, "words": {"source": CALIBRATION["source"]}},
            }
        },
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("recipes")
    with mock.patch.object(sources, "file_identity", sources.file_identity):  # is replaced
        fuzzing.make_folder(folder)
        for name in ("text.txt", "other.txt", "judged.txt"):
            (folder / name).write_text(f"words of {name} " * 4000)
        row = json.dumps({"text": "words of a row " * 40, "other": "more of it " * 40})
        (folder / "rows.jsonl").write_text(f"{row}\n" * 200)
        yield folder


@pytest.mark.parametrize("name", METHODS)
def test_a_field_alone_changes_the_plan_or_is_refused(folder: Path, name: str) -> None:
    base = {key: value for key, value in (COMMON | METHODS[name]).items() if value is not None}
    before, recipe = _planned(folder, base)
    ignored = []
    for path, values in _fields(recipe):
        dotted = ".".join(map(str, path))
        last = str(path[-1])
        if any(dotted == one or dotted.startswith(f"{one}.") for one in ELSEWHERE):
            continue
        if name == "tyr, faithful" and dotted == "search.budget.token_forwards":
            continue  # a ceiling, which the published settings stay below
        if path[0] == "validate" and last.startswith(GATES):
            continue
        taken = []
        for value in values:
            try:
                taken.append(_planned(folder, _with(base, path, value))[0] != before)
            except (UserError, BuildError):
                continue
        if taken and not any(taken):
            ignored.append(dotted)
    assert not ignored


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("importance, not refitted", "dense_target", 0.5),
        ("importance, not refitted", "damping", 0.01),
        ("importance", "spread", 1.0),
        ("importance", "exponent", 2.0),
        ("adapruner, random", "startup_trials", 10),
        ("adapruner", "calibration", {"mixture": True}),
        ("adapruner, uniform", "refit", True),
        ("adapruner, tyr", "finalists", 3),
        ("adapruner, not refitted", "dense_target", 0.5),
        ("tyr", "accumulation", "centre"),
        ("tyr, faithful", "dense_target", 0.5),
    ],
)
def test_what_is_not_read_may_not_be_given_with_its_default_either(
    folder: Path, name: str, field: str, value: object
) -> None:
    base = {key: value for key, value in (COMMON | METHODS[name]).items() if value is not None}
    with pytest.raises(UserError, match=f"method.{field}.* is .*(not read|only)(?s:.*)hint: "):
        _planned(folder, _with(base, ("method", field), value))


def test_sections_and_settings_that_go_with_nothing_are_refused(folder: Path) -> None:
    weights = COMMON | METHODS["importance, of weights alone"] | {"calibration": CALIBRATION}
    with pytest.raises(UserError, match=r"calibration is not read .* the weights alone"):
        _planned(folder, weights)
    at_random = COMMON | METHODS["tyr, random"]
    with pytest.raises(UserError, match="first_step is not read with `searcher: random`"):
        _planned(folder, _with(at_random, ("method", "first_step"), 0.125))


def _planned(folder: Path, recipe: Any) -> tuple[str, BaseModel]:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    found = plan_recipe(path, (), subject_for_plan)
    return found.plan.fingerprint, found.recipe


def _fields(
    section: BaseModel, within: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], list[Any]]]:
    """The path of every field of a recipe, and other values that it might have."""
    for name, field in type(section).model_fields.items():
        path, value = (*within, field.alias or name), getattr(section, name)
        if name == "kind":
            continue
        if isinstance(value, BaseModel):
            yield from _fields(value, path)
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            yield from _fields(value[0], (*path, 0))
        else:
            yield path, _others(value, field.annotation)


def _others(value: Any, annotation: Any) -> list[Any]:
    options = [one for one in _literals(annotation) if one != value]
    match value:
        case bool():
            return [not value]
        case int():
            return [value + 1, 2 * value, value - 1, value + 16, value // 2]
        case float():
            return [value / 2, value * 1.5, value + 0.25, value - 0.25, 1 - value]
        case [*items]:
            halves = [item / 2 for item in items if isinstance(item, float)]
            found = [items[:1], items[1:], options[:1], halves, [4], [0.5]]
            return [other for other in found if other != items]
        case dict():
            return [{option: 1.0} for option in options[:2]]
    return [*options, 1, 2, 8, 16, 0.3, 0.7, True]


def _literals(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [option for part in get_args(annotation) for option in _literals(part)]


def _with(recipe: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """A recipe with one field changed."""
    if not path:
        return list(value) if isinstance(value, tuple) else value
    if isinstance(recipe, list):
        return [_with(recipe[0], path[1:], value), *recipe[1:]]
    return (recipe or {}) | {path[0]: _with((recipe or {}).get(path[0]), path[1:], value)}
