# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from prunec import recipes
from prunec.validators import tasks
from prunec.validators.errors import ValidationError
from prunec.validators.task_metrics import score_of
from prunec.validators.task_scores import Pool
from prunec.validators.tasks import (
    TaskError,
    TaskScore,
    TaskScores,
    TaskSettings,
    check,
    compare,
    evaluate,
)
from tests.conftest import make_model

pytestmark = pytest.mark.skipif(
    not find_spec("lm_eval"), reason="lm-eval is not installed: make setup"
)

ROOT = Path(__file__).parent.parent.parent
PYTINY = ROOT / "examples" / "pytiny"
SHIPPED = recipes.folder() / "tasks"
NAMES = ("python_brackets", "python_names", "python_next_line")

CHOICES = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {data}}}
test_split: train
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: {target}
target_delimiter: ""
metric_list: [{{metric: {metric}}}]
{more}
"""
FUNCTIONS = """
def none(docs): return docs.select([])
def broken(doc, results): raise RuntimeError("cannot be scored")
"""
# Right answers in places 1, 1, 2, 0, 1: always answering 1 gets 3 of 5.
PLACES = [1, 1, 2, 0, 1]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> tuple[TaskScores, Path]:
    """pytiny on the first 40 items of the shipped tasks, and lm-eval's files."""
    output = tmp_path_factory.mktemp("dense")
    told: list[tuple[int, int]] = []
    settings = TaskSettings(("python_code",), (SHIPPED,), limit=40, max_length=512)
    scores = evaluate(PYTINY, "hf", settings, output, lambda done, of: told.append((done, of)))
    assert told[-1] == (480, 480)
    assert told == sorted(told)
    return scores, output


@pytest.fixture(scope="module")
def mixed(
    tiny_llama: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, TaskScore], Path]:
    """A group of good and bad local tasks on a random model: the scores and lm-eval's files."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {"question": "def ", "choices": ["a", "b", "c"], "place": place, "text": "abc"[place]}
        for place in PLACES
    ]
    data = folder / "items.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "functions.py").write_text(FUNCTIONS)
    made: dict[str, dict[str, Any]] = {
        "by_place": {},
        "by_text": {"target": "text"},
        "emptied": {"more": "process_docs: !function functions.none"},
        "raising": {"more": "process_results: !function functions.broken"},
        "elsewhere": {"data": folder / "missing.jsonl"},
    }
    usual: dict[str, Any] = {"data": data, "target": "place", "metric": "acc", "more": ""}
    for name, special in made.items():
        text = CHOICES.format(name=name, **{**usual, **special})
        (folder / f"{name}.yaml").write_text(text)
    (folder / "pair.yaml").write_text("group: pair\ntask: [by_place, by_text]\n")
    names = ("pair", *(name for name in made if not name.startswith("by_")))
    output = folder / "output"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
        scores = evaluate(tiny_llama(), "hf", TaskSettings(names, (folder,)), output)
    return {score.task: score for score in scores.scores}, output


def test_a_trained_model_is_well_above_chance_on_the_shipped_tasks(
    dense: tuple[TaskScores, Path],
) -> None:
    scores, output = dense
    assert tuple(score.task for score in scores.scores) == NAMES
    reported = json.loads((output / tasks.RESULTS).read_text())
    for score in scores.scores:
        assert score.error is None
        assert score.metric == "acc"
        assert score.groups == ("python_code",)
        assert 0.45 < score.value < 0.95
        assert score.value == reported["results"][score.task]["acc,none"]
        assert [doc_id for doc_id, _ in score.items] == list(range(40))
        assert score.floor == score.chance == 0.25
    assert scores.pools == (Pool("python_code", NAMES),)
    assert reported["config"]["model_args"]["pretrained"] == str(PYTINY)


def test_a_group_is_scored_by_all_its_items_as_well(dense: tuple[TaskScores, Path]) -> None:
    group, *tasks_of_it = compare(dense[0], dense[0], "hf")
    assert (group.task, group.tasks, group.items) == ("python_code", NAMES, 120)
    assert [found.task for found in tasks_of_it] == list(NAMES)
    assert group.dense == pytest.approx(sum(found.dense for found in tasks_of_it) / 3)
    widths = [found.recovery.high - found.recovery.low for found in (group, *tasks_of_it)]
    assert max(widths[:1]) < min(widths[1:])


def test_a_metric_that_is_asked_for_is_the_one_that_is_scored(tmp_path: Path) -> None:
    asked = {"python_names": "acc_norm"}
    settings = TaskSettings(("python_names",), (SHIPPED,), asked, limit=5)
    [score] = evaluate(PYTINY, "hf", settings, tmp_path).scores
    assert score.metric == "acc_norm"
    reported = json.loads((tmp_path / tasks.RESULTS).read_text())
    assert score.value == reported["results"]["python_names"]["acc_norm,none"]


def test_items_are_held_out_text_with_one_right_answer_in_every_place(
    dense: tuple[TaskScores, Path],
) -> None:
    for name in NAMES:
        lines = (dense[1] / tasks.SAMPLES.format(name)).read_text().splitlines()
        docs = [json.loads(line)["doc"] for line in lines]
        assert len({doc["context"] + doc["choices"][doc["answer"]] for doc in docs}) == 40
        for place, doc in enumerate(docs):
            assert len(set(doc["choices"])) == 4
            assert doc["answer"] == place % 4
            assert len(doc["context"]) <= 600


def test_a_second_process_has_the_same_items_and_finds_the_same(
    dense: tuple[TaskScores, Path], tmp_path: Path
) -> None:
    settings = TaskSettings(("python_names",), (SHIPPED,), limit=10)
    [again] = evaluate(PYTINY, "hf", settings, tmp_path).scores
    assert again.items == dense[0].scores[1].items[:10]
    file = tasks.SAMPLES.format("python_names")
    first, second = (
        [json.loads(line)["doc_hash"] for line in (folder / file).read_text().splitlines()[:10]]
        for folder in (dense[1], tmp_path)
    )
    assert first == second


def test_a_bad_task_is_an_error_and_the_others_go_on(
    mixed: tuple[dict[str, TaskScore], Path],
) -> None:
    scores, output = mixed
    assert {name: score.error for name, score in scores.items() if score.error} == {
        "emptied": "scored no items: its dataset is empty",
        "raising": "failed: RuntimeError: cannot be scored",
        "elsewhere": scores["elsewhere"].error,
    }
    assert "does not load: FileNotFoundError" in str(scores["elsewhere"].error)
    assert all(math.isnan(score.value) for score in scores.values() if score.error)
    assert len(scores["by_place"].items) == len(scores["by_text"].items) == 5
    # lm-eval gave up on all of them together, so each has a file of its own.
    assert {path.name for path in output.glob("results*.json")} == {
        "results_by_place.json",
        "results_by_text.json",
    }


def test_a_group_is_the_tasks_that_it_is_made_of(
    mixed: tuple[dict[str, TaskScore], Path],
) -> None:
    assert "pair" not in mixed[0]
    assert [name for name, score in mixed[0].items() if score.groups == ("pair",)] == [
        "by_place",
        "by_text",
    ]


def test_the_floor_is_what_the_best_constant_answer_scores(
    mixed: tuple[dict[str, TaskScore], Path],
) -> None:
    assert mixed[0]["by_place"].floor == pytest.approx(3 / 5)
    assert mixed[0]["by_text"].floor == pytest.approx(3 / 5)
    assert mixed[0]["by_place"].chance == pytest.approx(1 / 3)


def test_a_name_that_there_is_not_is_refused_with_its_neighbours() -> None:
    with pytest.raises(ValidationError, match="there is no task 'python_next_lines'") as refused:
        check(TaskSettings(("python_names", "python_next_lines"), (SHIPPED,)))
    assert "python_next_line" in str(refused.value.hint)


def test_a_metric_that_there_is_not_is_refused_before_any_model_is_loaded() -> None:
    asked = {"python_code": "acc_nrom"}
    with pytest.raises(
        TaskError, match="has no metric 'acc_nrom'; it has acc, acc_norm"
    ) as refused:
        check(TaskSettings(("python_code",), (SHIPPED,), asked))
    assert refused.value.about == "metrics"


def test_data_that_cannot_be_had_without_a_network_is_told_before_any_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "away.yaml").write_text(
        "task: away\ndataset_path: nobody/nothing-of-the-kind\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: text\ndoc_to_choice: [a, b]\n"
        "doc_to_target: 0\nmetric_list: [{metric: acc}]\n"
    )
    with pytest.raises(TaskError, match="the data of away is not on this machine") as refused:
        check(TaskSettings(("away",), (tmp_path,)))
    assert refused.value.about == "names"


def test_a_folder_of_tasks_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="is no folder of tasks"):
        check(TaskSettings(("a",), (tmp_path / "missing",)))


def test_a_process_that_dies_is_an_error_of_every_task(tmp_path: Path) -> None:
    (tmp_path / "deadly.yaml").write_text("task: deadly\ncustom_dataset: !function f.die\n")
    (tmp_path / "f.py").write_text(
        "import os, signal\ndef die(**_): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    [score] = evaluate(PYTINY, "hf", TaskSettings(("deadly",), (tmp_path,)), tmp_path / "o").scores
    assert score.task == "deadly"
    assert str(score.error).startswith("lm-eval was killed by SIGKILL")


def test_a_missing_runtime_is_an_error_that_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tasks, "find_spec", lambda name: None)
    [score] = evaluate(PYTINY, "vllm", TaskSettings(("a",)), tmp_path).scores
    assert "pip install 'prunec[eval]'" in str(score.error)


class Anything:
    OUTPUT_TYPE = "generate_until"


def _logged(answer: Any = "text", **metrics: list[Any]) -> dict[str, Any]:
    count = len(next(iter(metrics.values())))
    return {
        "samples": {
            "t": [
                {
                    "doc_id": i,
                    "filter": "none",
                    "resps": [[answer]],
                    "doc_hash": "",
                    "target_hash": "",
                }
                | {metric: values[i] for metric, values in metrics.items()}
                for i in range(count)
            ]
        },
        "results": {"t": {f"{metric},none": sum(v) / count for metric, v in metrics.items()}},
        "higher_is_better": {"t": {metric: metric != "error_rate" for metric in metrics}},
    }


def test_the_first_metric_of_which_more_is_better_counts() -> None:
    score = score_of("t", Anything, _logged(error_rate=[1, 0], f1=[0.5, 0.0], acc=[1, 1]))
    assert (score.metric, score.value, score.items) == ("f1", 0.25, ((0, 0.5), (1, 0.0)))
    assert score.floor is None


def test_the_metric_that_is_asked_for_counts() -> None:
    results = _logged(f1=[0.5, 0.0], acc=[1, 1], error_rate=[1, 0])
    assert score_of("t", Anything, results, "acc").metric == "acc"
    assert score_of("t", Anything, results, "acc,none").value == 1.0
    for asked in ("error_rate", "missing", "acc,strict"):
        assert str(score_of("t", Anything, results, asked).error).startswith(
            f"has no metric {asked} of which more is better"
        )


def test_a_task_of_which_only_less_is_better_has_no_score() -> None:
    score = score_of("t", Anything, _logged(error_rate=[1, 0]))
    assert score.error == (
        "has no metric of which more is better and which is a mean over items; it has error_rate"
    )


def test_a_metric_that_is_no_mean_over_items_is_passed_over() -> None:
    results = _logged(bleu=[0.5, 0.0], acc=[True, False])
    results["results"]["t"]["bleu,none"] = 0.9
    assert score_of("t", Anything, results).metric == "acc"


def test_answers_that_are_nan_are_no_score() -> None:
    score = score_of("t", Anything, _logged(answer=(math.nan, False), acc=[1.0, 0.0]))
    assert score.error == "the model's answers to 2 of 2 items are NaN"
    assert score_of("t", Anything, _logged(acc=[math.nan, 1.0])).error is not None


def _score(values: list[float], **other: Any) -> TaskScores:
    mean = sum(values) / len(values)
    return TaskScores((TaskScore("t", "acc", mean, tuple(enumerate(values)), 0.25, **other),))


def test_models_are_compared_item_by_item() -> None:
    # 100 items: both right on 60, only the dense on 10, only the pruned on 4, none on 26.
    before = _score([1.0] * 70 + [0.0] * 30)
    after = _score([1.0] * 60 + [0.0] * 10 + [1.0] * 4 + [0.0] * 26)
    [result] = compare(before, after, "hf")
    assert (result.items, result.dense, result.pruned, result.floor) == (100, 0.7, 0.64, 0.25)
    assert result.difference.value == pytest.approx(-0.06)
    assert result.recovery.value == pytest.approx(0.64 / 0.7)
    # The variance of a paired difference is (10 + 4) / 100 - 0.06².
    half = 1.96 * math.sqrt((0.14 - 0.06**2) / 100)
    assert result.difference.high - result.difference.value == pytest.approx(half, rel=0.25)
    # Two separate averages would be less sure.
    assert result.pruned_estimate.high - result.pruned > half


def test_what_cannot_be_compared_is_an_error() -> None:
    right, failed = _score([1.0, 0.0]), TaskScores((TaskScore("t", error="failed"),))

    def error(before: TaskScores, after: TaskScores) -> str | None:
        [result] = compare(before, after, "hf")
        assert math.isnan(result.difference.value)
        return result.error

    assert error(right, failed) == "pruned model: failed"
    assert error(failed, failed) == "failed"
    assert error(right, TaskScores(())) == "pruned model: was not run"
    assert error(right, _score([1.0])) == "the models were given different items"
    assert (
        error(right, _score([1.0, 0.0], digest="other")) == "the models were given different items"
    )


def test_items_begin_as_the_models_own_tokenizer_begins_a_text(tmp_path: Path) -> None:
    """As windows of text do; lm-eval has put a BOS token before those of some models by itself."""
    from prunec.validators.task_run import _open

    folder = make_model(tmp_path, model_type="gemma2", layers=1)
    request = {
        "folder": str(folder),
        "backend": "hf",
        "dtype": "float32",
        "max_length": None,
        "trust_remote_code": False,
        "batch_size": 1,
    }
    plain = _open(request)[0].tok_encode("def self")
    file = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    assert plain == tokenizer.encode("def self").ids and plain[0] != 1
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.save(str(file))
    assert _open(request)[0].tok_encode("def self") == [1, *plain]


def test_scores_survive_json() -> None:
    scores = TaskScores((*_score([1.0, 0.5]).scores, TaskScore("u", error="failed", groups=("g",))))
    again = TaskScores.from_dict(json.loads(json.dumps(scores.as_dict(), allow_nan=False)))
    assert again.scores[0] == scores.scores[0]
    assert again.as_dict() == scores.as_dict()
    assert math.isnan(again.scores[1].value)


@pytest.mark.vllm
@pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is not installed: make setup")
def test_vllm_answers_every_item_as_transformers_does(
    dense: tuple[TaskScores, Path], tmp_path: Path
) -> None:
    settings = TaskSettings(("python_code",), (SHIPPED,), limit=20, max_length=512)
    served = evaluate(PYTINY, "vllm", settings, tmp_path)
    for score, plain in zip(served.scores, dense[0].scores, strict=True):
        assert score.error is None
        assert score.items == plain.items[:20]
