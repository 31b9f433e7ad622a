# SPDX-License-Identifier: Apache-2.0
"""Broken recipes: each mistake is told in one sentence, at its place, and nothing ever crashes."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prunec.compiler.diagnostics import Diagnostic, UserError
from prunec.compiler.recipe_file import load_recipe

VALID = """\
schema_version: 1
model: {source: model, dtype: bfloat16}
method: {kind: tyr}
target:
  sparsity: 0.5
  layout: per_layer
  multiple_of: 16
calibration:
  source: {kind: text, files: [text.txt]}
  tokens: 4096
  sequence_length: 64
search: {budget: {token_forwards: 1000}}
export: [{kind: hf}]
validate:
  perplexity: {source: {kind: python_stdlib}, max_ratio: 3.0}
  completion: {prompt: "def f(", tokens: 8}
"""


@dataclass(frozen=True)
class Broken:
    """One edit of the valid recipe, and what must be said about it."""

    name: str
    old: str
    new: str
    at: str
    says: str
    hints: str = ""


def bomb() -> str:
    """Nine anchors, each ten times the one before: a thousand million values, once expanded."""
    lines = ["a0: &a0 [lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    return "\n".join(lines) + "\n"


EDITS = [
    # Wrong types
    Broken("number as text", "0.5", "half", "5:13", 'target.sparsity is "half"; it must be a num'),
    Broken("number in quotes", "0.5", "'0.5'", "5:13", 'is "0.5"; it must be a', "quotes"),
    Broken("boolean as number", "0.5", "true", "5:13", "target.sparsity is true; it must be"),
    Broken("nothing as number", "4096", "", "10:10", "calibration.tokens is null; it must be"),
    Broken("list as number", "0.5", "[0.5]", "5:13", "target.sparsity is a list; it must be"),
    Broken("fraction as count", "4096", "4096.5", "10:11", "calibration.tokens is 4096.5; it must"),
    Broken("float as count", "4096", "4096.0", "10:11", "it must be a whole number", "write 4096"),
    Broken("underscores", "4096", "4_096", "10:11", 'tokens is "4_096"; it must', "s: 4096"),
    Broken("huge exponent", "4096", "4e3", "10:11", "tokens is 4000.0; it must", "write 4000"),
    Broken("text as section", "{kind: tyr}", "tyr", "3:9", 'method is "tyr"', "write {kind: tyr}"),
    Broken("list as section", "{source: model, dtype: bfloat16}", "[]", "2:8", "an empty list"),
    Broken("section as list", "[{kind: hf}]", "{kind: hf}", "13:9", "export is a mapping; it must"),
    Broken("text as list", "[text.txt]", "text.txt", "9:31", "files is"),
    Broken("number in list", "[text.txt]", "[text.txt, 7]", "9:42", "files.1 is 7; it must be a s"),
    Broken("version as fraction", "n: 1", "n: 1.0", "1:17", "is 1.0; it must be the whole number"),
    # Impossible values
    Broken("sparsity of one", "0.5", "1.5", "5:13", "between 0 and 1 (exclusive)"),
    Broken("sparsity of zero", "0.5", "0", "5:13", "target.sparsity is 0; it must be between"),
    Broken("not a number", "0.5", ".nan", "5:13", "target.sparsity is nan; it must be"),
    Broken("overflow", "3.0", "1e999", "15:58", "max_ratio is inf; it must be a number above 0"),
    Broken("percentage", "0.5", "50", "5:13", "is 50; it must be between 0", "write 0.5"),
    Broken("percent sign", "0.5", "50%", "5:13", 'is "50%"; it must be a number', "write 0.5"),
    Broken("too large", "4096", "9" * 30, "10:11", "is too large"),
    Broken("negative", "4096", "-1", "10:11", "calibration.tokens is -1; it must be at least 1"),
    Broken("multiple", "16\n", "5000\n", "7:16", "multiple_of is 5000; it must be from 1 to 4096"),
    Broken("less than a window", "4096", "63", "10:11", "at least sequence_length (64)"),
    Broken("future version", "n: 1", "n: 2", "1:17", "schema_version is 2; it must be 1"),
    Broken("enum", "bfloat16", "bf16", "2:31", "bfloat16, float16 or float32", "mean bfloat16?"),
    Broken("other name", "{kind: hf}", "{kind: huggingface}", "13:17", "be hf, vllm", "mean hf?"),
    Broken(
        "name of a device",
        "schema_version: 1",
        "schema_version: 1\nresources: {device: gpu}",
        "2:21",
        "must be auto, cpu or cuda",
        "mean cuda?",
    ),
    Broken("empty text", '"def f("', '""', "16:24", "a string that is not empty"),
    Broken("empty list", "[{kind: hf}]", "[]", "13:9", "is an empty list; it must be a list of"),
    Broken(
        "unknown kind",
        "tyr",
        "try",
        "3:16",
        "must be tyr, uniform, importance, adapruner or magnitude",
        "mean tyr",
    ),
    Broken("odd kind", "tyr", "[tyr]", "3:16", "method.kind is a list; it must be tyr"),
    Broken("no kind", "kind: tyr", "", "3:1", "method.kind is missing; it must be tyr"),
    Broken("unknown export", "kind: hf", "kind: gguf", "13:17", "it must be hf, vllm or onnx"),
    Broken("second export", "[{kind: hf}]", "[{kind: hf}, {kind: hf}]", "13:22", "a second `hf`"),
    # Unknown and missing keys
    Broken("typo", "sparsity", "sparsty", "5:3", 'target has no key "sparsty"', "mean sparsity?"),
    Broken(
        "unknown key", "kind: tyr", "kind: tyr, x: 1", "3:21", 'method of kind tyr has no key "x"'
    ),
    Broken("unknown section", "search:", "prune:", "12:1", 'no key "prune"', "its keys are schema"),
    Broken("missing key", "source: model, ", "", "2:1", "model.source is missing; it must be a"),
    Broken("missing section", "export: [{kind: hf}]\n", "", "1:1", "export is missing; it must be"),
    # Sections and keys that do not go together
    Broken("no size", "  sparsity: 0.5\n", "", "4:1", "target has no size; it must have one of sp"),
    Broken("null size", "0.5", "null", "4:1", "target has no size; it must have one of sparsity"),
    Broken(
        "two sizes", "0.5", "0.5\n  parameters: 9", "6:15", "parameters is given beside target.sp"
    ),
    Broken("speed-up as number", "sparsity: 0.5", "speedup: 2", "5:12", "speedup is 2; it must be"),
    Broken(
        "slower",
        "sparsity: 0.5",
        "speedup: {ratio: 1, phase: decode, profile: x}",
        "5:20",
        "target.speedup.ratio is 1; it must be above 1",
    ),
    Broken("unread search", "kind: tyr", "kind: uniform", "12:1", "not read by method `uniform`"),
    Broken(
        "shared split",
        "{kind: text, files: [text.txt]}",
        "{kind: python_stdlib, split: evaluation}",
        "9:40",
        "which validate.perplexity reads too",
    ),
    Broken(
        "revision of a folder", "model,", "model, revision: main,", "2:34", "only with a hub id"
    ),
    # Gates on what is not measured
    Broken(
        "parity without text",
        "perplexity: {source: {kind: python_stdlib}, max_ratio: 3.0}",
        "parity: {}",
        "15:3",
        "validate.parity takes its prompts from the text of validate.perplexity, which is missing",
        "add validate.perplexity",
    ),
    Broken(
        "gate on no task",
        'completion: {prompt: "def f(", tokens: 8}',
        "tasks: {names: [arc_easy], max_drop: {arc: 0.1}}",
        "16:46",
        'max_drop.arc is a gate on "arc", which is not measured',
        "tasks.names has arc_easy",
    ),
    Broken(
        "gate on no runtime",
        'completion: {prompt: "def f(", tokens: 8}',
        "speed: {runtimes: [hf], min_speedup: {vllm: {decode: 1.2}}}",
        "16:41",
        "min_speedup.vllm is a gate on vllm, which is not measured",
        "add vllm to speed.runtimes",
    ),
    Broken(
        "runtime without export",
        'completion: {prompt: "def f(", tokens: 8}',
        "speed: {runtimes: [hf, onnx]}",
        "16:26",
        "speed.runtimes.1 is onnx, and there is no such export",
        "add {kind: onnx} to export",
    ),
    Broken(
        "backend without export",
        'completion: {prompt: "def f(", tokens: 8}',
        "tasks: {names: [arc_easy], backends: [vllm]}",
        "16:41",
        "tasks.backends.0 is vllm, and there is no such export",
        "add {kind: vllm} to export",
    ),
    Broken(
        "text judged and fitted",
        'completion: {prompt: "def f(", tokens: 8}',
        "elsewhere: {perl: {source: {kind: text, files: [text.txt]}}}",
        "16:22",
        "elsewhere.perl.source reads",
        "give each text of its own",
    ),
    # Files that are not there
    Broken("no model", "source: model", "source: ./modle", "2:17", "no such folder", '"model"?'),
    Broken("not a model", "source: model", "source: text.txt", "2:17", "must be a folder"),
    Broken("no hub id", "source: model", "source: a b", "2:17", "or a hub id (`org/name`)"),
    Broken("no file", "text.txt", "txet.txt", "9:32", "files.0 is", '"text.txt"?'),
    Broken("no match", "text.txt", "'*.md'", "9:32", "no file matches it"),
    Broken("no config", "model,", "org/m, config: c.json,", "2:32", "there is no such file"),
    # YAML itself
    Broken("tab", "  sparsity", "\tsparsity", "5:1", "a tab stands where YAML wants spaces"),
    Broken("unclosed brace", "{kind: tyr}", "{kind: tyr", "4:7", "`}` is missing", "began at"),
    Broken("unclosed quote", '"def f("', '"def f(', "16:24", "this quoted text is never closed"),
    Broken("indentation", "  layout", "   layout", "6:10", "a `:` is not allowed here"),
    Broken("no colon", "sparsity: 0.5", "sparsity 0.5", "6:9", "a `:` is not allowed here"),
    Broken("bad escape", '"def f("', r'"def\q"', "16:29", "starts no escape"),
    Broken("bad code point", '"def f("', r'"\UFFFFFFFF"', "16:27", "is not valid YAML"),
    Broken("surrogate", '"def f("', r'"\ud800"', "16:24", "has a character that text may not"),
    Broken("duplicate key", "n: 1\n", "n: 1\nschema_version: 1\n", "2:1", "is given twice"),
    Broken("anchor", "model,", "&m model,", "2:17", "anchors and aliases"),
    Broken("alias", "0.5", "*half", "5:13", "anchors and aliases"),
    Broken("merge", "{kind: tyr}", "{<<: {kind: tyr}}", "3:10", "merge keys"),
    Broken("tag", "0.5", "!!python/name:os.system x", "5:13", "tags such as"),
    Broken("number as key", "search:", "12:", "12:1", "a key must be a string, and this one is 12"),
    Broken("list as key", "search:", "[a]:", "12:1", "a key must be a string"),
    Broken("two documents", "search:", "---\nsearch:", "12:1", "a second starts here"),
    Broken("control character", "tyr", "t\x1byr", "3:17", r'"\x1b" is not allowed'),
    Broken("nothing but NUL", VALID, "\0\0\0", "1:1", r'"\x00" is not allowed'),
    Broken("list at the top", VALID, "# x\n- 1\n", "2:1", "this is a list"),
    Broken("text at the top", VALID, "pruned please", "1:1", 'this is "pruned please"'),
    Broken("empty", VALID, "", "1:1", "the recipe is empty", "prunec recipes"),
    Broken("only a comment", VALID, "# soon\n", "1:1", "the recipe is empty"),
    Broken("bomb", VALID, bomb(), "1:5", "anchors and aliases"),
    Broken("depth", VALID, "a: " + "[" * 100_000, "1:36", "at most 32 levels deep"),
    Broken("block depth", VALID, "- " * 100_000, "1:67", "at most 32 levels deep"),
    Broken("width", VALID, "[" + "1, " * 20_000, "1:29999", "at most 10000 values"),
]

BYTES = [
    ("Latin 1", b"schema_version: 1\n# caf\xe9\n", ":2:6", "the byte 0xe9 here is not"),
    ("UTF-16", VALID.encode("utf-16"), ":1:1", "is UTF-8 text"),
    ("mark and Latin 1", b"\xef\xbb\xbf# \xc3\xa9 \xe9", ":1:5", "the byte 0xe9 here is not"),
    ("noise", bytes(range(256)) * 16, ":2:118", "the byte 0x80 here is not"),
    ("ten megabytes", b"\xff\x00" * 5_000_000, "", "at most 1048576 bytes"),
]

JARGON = re.compile(r"Traceback|pydantic|[Ii]nput should|_type\b|validation error|<block|\n")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "text.txt").write_text("words\n", encoding="utf-8")
    path = tmp_path / "bad.yaml"
    path.write_text(VALID, encoding="utf-8")
    return path


def mistakes(path: Path, *overrides: str) -> tuple[Diagnostic, ...]:
    """What is wrong with a recipe; every message is one sentence in plain words."""
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    assert caught.value.exit_code == 2
    for diagnostic in caught.value.diagnostics:
        assert not JARGON.search(diagnostic.message)
        assert not diagnostic.message.endswith(".")
        assert diagnostic.where
    return caught.value.diagnostics


def test_the_valid_recipe_is_valid(recipe: Path) -> None:
    assert load_recipe(recipe).target.sparsity == 0.5


@pytest.mark.parametrize("broken", EDITS, ids=lambda broken: broken.name)
def test_a_broken_recipe_gets_one_placed_sentence(recipe: Path, broken: Broken) -> None:
    assert broken.old in VALID
    recipe.write_bytes(VALID.replace(broken.old, broken.new, 1).encode())
    (mistake,) = mistakes(recipe)
    assert mistake.where == f"{recipe}:{broken.at}"
    assert broken.says in mistake.message
    assert broken.hints in (mistake.hint or "")


@pytest.mark.parametrize(
    ("data", "at", "says"), [row[1:] for row in BYTES], ids=[row[0] for row in BYTES]
)
def test_bytes_that_are_no_text_get_one_sentence(
    recipe: Path, data: bytes, at: str, says: str
) -> None:
    recipe.write_bytes(data)
    (mistake,) = mistakes(recipe)
    assert mistake.where == f"{recipe}{at}"
    assert says in mistake.message


def test_a_file_that_cannot_be_read_gets_one_sentence(recipe: Path) -> None:
    folder = recipe.parent
    (missing,) = mistakes(folder / "bda.yaml")
    assert (missing.message, missing.where) == ("there is no such file", f"{folder}/bda.yaml")
    assert missing.hint == f"did you mean {recipe}?"
    (nowhere,) = mistakes(folder / "no" / "bad.yaml")
    assert "there is no folder" in (nowhere.hint or "")
    (is_folder,) = mistakes(folder)
    assert "this is a folder" in is_folder.message
    os.mkfifo(folder / "pipe.yaml")
    (pipe,) = mistakes(folder / "pipe.yaml")  # reading it would wait for ever
    assert "not a regular file" in pipe.message
    (endless,) = mistakes(folder / ("x" * 5000))
    assert "cannot be read" in endless.message


def test_a_misspelt_name_of_a_shipped_recipe_is_told_the_right_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (near,) = mistakes(Path("quikstart"))
    assert near.hint == "did you mean quickstart?"
    (far,) = mistakes(Path("zebra"))
    assert "the recipes that ship with prunec: " in (far.hint or "")
    assert "llama70b_50" in (far.hint or "")


def test_several_mistakes_are_told_at_once_in_reading_order(recipe: Path) -> None:
    text = VALID.replace("0.5", "1.5").replace("layout:", "layuot:").replace("tyr", "uniform")
    recipe.write_text(text + "schema_version: 1\n", encoding="utf-8")
    found = mistakes(recipe, "model.dtype=int8")
    lines = [str(one.where).removeprefix(f"{recipe}:") for one in found]
    assert lines == ["5:13", "6:3", "12:1", "17:1", "--set model.dtype=int8"]


def test_a_duplicate_key_names_both_places(recipe: Path) -> None:
    recipe.write_text(VALID.replace("  layout", "  sparsity: 0.25\n  layout"), encoding="utf-8")
    (mistake,) = mistakes(recipe)
    assert mistake.where == f"{recipe}:6:3"
    assert f"first given at {recipe}:5:3" in mistake.message


def test_a_mistake_in_an_option_points_at_the_option(recipe: Path) -> None:
    (mistake,) = mistakes(recipe, "target.sparsity=1.5")
    assert mistake.render() == (
        "--set target.sparsity=1.5: target.sparsity is 1.5; it must be between 0 and 1 (exclusive)"
    )


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("sparsity", "an override is written dotted.key=value"),
        ("=1", "an override is written dotted.key=value"),
        ("target..sparsity=1", "an override is written dotted.key=value"),
        ("target.sparsity=[1", "`]` is missing here"),
        ("target.sparsity={a: 1, a: 2}", 'the key "a" is given twice'),
        ("target.sparsity.x=1", 'target.sparsity is 0.5, so it has no key "x"'),
        ("target.sprasity=0.5", 'target has no key "sprasity"'),
        ("export.2.kind=hf", 'export is a list of 1, so it has no item "2"'),
        ("export.last.kind=hf", 'export is a list of 1, so it has no item "last"'),
        ("export.0={}", "export.0.kind is missing; it must be hf"),
        ("search.seed=one", 'search.seed is "one"; it must be a whole number of at least 0'),
        ("target=", "target is null; it must be a mapping"),
        ("calibration.source.files.0=gone.txt", "there is no such file"),
        ("validate.tasks={names: []}", "it must be a list of one or more strings"),
        ("validate.tasks={names: [a], include: 3}", "it must be a list of one or more paths"),
        ("validate.speed={runtimes: []}", "it must be a list of one or more of hf, onnx, vllm"),
        (
            "validate.speed={runtimes: [hf], batch_sizes: []}",
            "it must be a list of one or more whole numbers",
        ),
        (
            "method={kind: importance, metrics: {wandaa: 1.0}}",
            'method.metrics has no key "wandaa"',
        ),
        ("method.faithful=1", "method.faithful is 1; it must be true or false"),
        ("method.accumulation=weighted_mean", "is read with `faithful: true` only"),
        (
            "method={kind: tyr, dense_target: 0.3, faithful: true}",
            "method.dense_target is not read with `faithful: true`",
        ),
        (
            "method={kind: tyr, first_step: 0.25, faithful: true}",
            "method.first_step is not read with `faithful: true`",
        ),
    ],
)
def test_a_wrong_option_gets_one_sentence(recipe: Path, option: str, says: str) -> None:
    (mistake,) = mistakes(recipe, option)
    assert mistake.where == f"--set {option}"
    assert says in mistake.message


def test_what_a_user_wrote_cannot_reach_the_terminal_unescaped(recipe: Path) -> None:
    for value in ("bfloat16", "text.txt"):  # of the second, a path is made
        recipe.write_text(VALID.replace(value, r'"\e[31m\u202e\n"'), encoding="utf-8")
        (mistake,) = mistakes(recipe)
        assert r'"\x1b[31m\u202e\n"' in mistake.message
        assert mistake.message.isprintable()


FUZZ = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
YAMLISH = st.text(st.sampled_from(list("abk01.:-#&*!|>%@`'\"{}[],?~<= \n\t\\eUx\u2028é")))


def loads_or_says_why(path: Path, *overrides: str) -> None:
    try:
        load_recipe(path, overrides)
    except UserError as error:
        assert error.diagnostics
        assert all("\n" not in one.message for one in error.diagnostics)


@FUZZ
@given(data=st.one_of(st.binary(), st.text().map(str.encode), YAMLISH.map(str.encode)))
def test_any_bytes_load_or_are_refused(recipe: Path, data: bytes) -> None:
    recipe.write_bytes(data)
    loads_or_says_why(recipe)


@FUZZ
@given(
    cuts=st.lists(
        st.tuples(st.integers(0, len(VALID)), st.integers(0, 20), YAMLISH), min_size=1, max_size=4
    )
)
def test_any_edit_of_a_recipe_loads_or_is_refused(
    recipe: Path, cuts: list[tuple[int, int, str]]
) -> None:
    text = VALID
    for start, length, insert in cuts:
        text = text[:start] + insert + text[start + length :]
    recipe.write_text(text, encoding="utf-8")
    loads_or_says_why(recipe)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | YAMLISH,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(YAMLISH, inner, max_size=3),
    max_leaves=6,
)
KEYS = [
    "model", "model.source", "model.config", "model.revision", "method", "method.kind",
    "method.damping", "target", "target.layout", "calibration", "calibration.source",
    "calibration.source.kind", "calibration.source.files", "calibration.source.files.0", "search",
    "search.source", "search.budget", "search.seed", "export", "export.0", "export.1",
    "export.0.kind", "validate", "validate.perplexity.source.split", "validate.completion.prompt",
]  # fmt: skip


@FUZZ
@given(key=st.sampled_from(KEYS), value=VALUES)
def test_any_value_anywhere_loads_or_is_refused(recipe: Path, key: str, value: object) -> None:
    loads_or_says_why(recipe, f"{key}={yaml.safe_dump(value, allow_unicode=True)}")
