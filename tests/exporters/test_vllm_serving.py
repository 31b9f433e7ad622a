# SPDX-License-Identifier: Apache-2.0
"""`prunec serve --run` under requests of the OpenAI client, and lm-eval on vLLM's backend."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from prunec.compiler.cli import main

MakeModel = Callable[..., Path]

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is not installed: make setup"),
]

PROMPTS = ["def self", "return None", "import class for in range " * 12, "if"]
TOKENS = 20
HALF = (
    "\N{REPLACEMENT CHARACTER}"  # a character of which more bytes would follow: vLLM waits for them
)
CALM = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}

# Both backends of lm-eval on one folder; what they find goes to a file.
LM_EVAL = """
import json, os, sys
import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

if __name__ == "__main__":
    folder, tasks, out = sys.argv[1:]
    options = {"tasks": ["tiny"], "bootstrap_iters": 0, "log_samples": False}
    options |= {"task_manager": TaskManager(include_path=tasks, include_defaults=False)}
    served = {"pretrained": folder, "dtype": "float32", "max_model_len": 256, "enforce_eager": True}
    found = [lm_eval.simple_evaluate("vllm", served, **options)["results"]]
    import prunec.exporters.hf
    model = AutoModelForCausalLM.from_pretrained(folder)
    model = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(folder))
    found.append(lm_eval.simple_evaluate(model, **options)["results"])
    json.dump(found, open(out, "w"))
"""

TASK = """
task: tiny
dataset_path: json
dataset_kwargs: {data_files: FILE}
output_type: loglikelihood_rolling
test_split: train
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}]
"""


@pytest.fixture(scope="module")
def build(tiny_llama: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build for vLLM by the command line, in layers of different shapes."""
    folder = tmp_path_factory.mktemp("build")
    (folder / "fit.txt").write_text("def self return import class None for in range if else " * 400)
    recipe = {
        "schema_version": 1,
        "model": {"source": str(tiny_llama(layers=4, head_dim=32)), "dtype": "float32"},
        "method": {"kind": "uniform"},
        "target": {"sparsity": 0.45, "multiple_of": 8},  # widths a step apart
        "calibration": {
            "source": {"kind": "text", "files": ["fit.txt"]},
            "tokens": 1024,
            "sequence_length": 32,
        },
        "export": [{"kind": "vllm"}],
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    output = folder / "out"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        words = ["prunec", "build", folder / "recipe.yaml", "--output", output]
        patch.setattr(sys, "argv", [*map(str, words)])
        main()
    assert left.value.code == 0
    return output


@pytest.fixture(scope="module")
def expected(build: Path) -> list[str]:
    """What transformers continues the prompts with."""
    import prunec.exporters.hf  # noqa: F401 - registers the class

    model = AutoModelForCausalLM.from_pretrained(build / "vllm")
    tokenizer: Any = AutoTokenizer.from_pretrained(build / "vllm")
    texts = []
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        generated = model.generate(input_ids=ids, max_new_tokens=TOKENS, **options)
        # As vLLM says it: without special tokens, which a random model may name.
        said = generated[0, ids.shape[1] :]
        texts.append(tokenizer.decode(said, skip_special_tokens=True))
    return [text.rstrip(HALF) for text in texts]


@pytest.fixture(scope="module")
def client(build: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    openai = pytest.importorskip("openai", reason="the client comes with vLLM")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = "from prunec.compiler.cli import main; main()"
    arguments = ["serve", str(build), "--run", "--port", str(port), "--dtype", "float32"]
    arguments += ["--", "--host", "127.0.0.1", "--max-model-len", "256", "--enforce-eager"]
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    with log.open("w") as stream:
        server = subprocess.Popen(
            [sys.executable, "-c", command, *arguments],
            env={**os.environ} | CALM,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            found = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
            _until_it_answers(found, server, log)
            yield found
        finally:
            server.terminate()
            server.wait(60)


def _until_it_answers(client: Any, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end and server.poll() is None:
        try:
            client.models.list()
            return
        except Exception:  # nothing listens yet, in one way or another
            time.sleep(0.5)
    pytest.fail(f"the server did not come up:\n{log.read_text()[-4000:]}")


def _complete(client: Any, prompt: str, **options: Any) -> Any:
    model = client.models.list().data[0].id
    asked = {"max_tokens": TOKENS, "temperature": 0, "extra_body": {"ignore_eos": True}}
    return client.completions.create(model=model, prompt=prompt, **asked, **options)


def test_the_layers_are_of_different_shapes(build: Path) -> None:
    import prunec.exporters.hf  # noqa: F401 - registers the class

    config = AutoConfig.from_pretrained(build / "vllm")
    assert len({config.shape_of(layer) for layer in range(config.num_hidden_layers)}) > 1


def test_concurrent_requests_of_mixed_lengths_are_answered_as_transformers_does(
    client: Any, expected: list[str]
) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda prompt: _complete(client, prompt), PROMPTS * 3))
    assert [answer.choices[0].text.rstrip(HALF) for answer in answers] == expected * 3
    assert {answer.usage.completion_tokens for answer in answers} == {TOKENS}


def test_a_stream_adds_up_to_the_answer(client: Any, expected: list[str]) -> None:
    pieces = [piece.choices[0].text for piece in _complete(client, PROMPTS[0], stream=True)]
    assert len(pieces) > 3
    assert "".join(pieces).rstrip(HALF) == expected[0]


def test_an_answer_ends_where_it_is_told_to_stop(client: Any, expected: list[str]) -> None:
    stop = expected[2][len(expected[2]) // 2 :][:4]
    answer = _complete(client, PROMPTS[2], stop=[stop]).choices[0]
    assert answer.finish_reason == "stop"
    assert answer.text == expected[2].partition(stop)[0]


def test_lm_eval_finds_the_same_on_vllm_as_on_transformers(build: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: make setup")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    texts = [f"def self {prompt} return None" for prompt in PROMPTS]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (tasks / "tiny.yaml").write_text(TASK.replace("FILE", str(tmp_path / "texts.jsonl")))
    script = tmp_path / "evaluate.py"
    script.write_text(LM_EVAL)
    run = subprocess.run(
        [sys.executable, str(script), str(build / "vllm"), str(tasks), "found.json"],
        cwd=tmp_path,
        env={**os.environ} | CALM | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    served, plain = json.loads((tmp_path / "found.json").read_text())
    for metric in ("word_perplexity,none", "byte_perplexity,none"):
        assert served["tiny"][metric] == pytest.approx(plain["tiny"][metric], rel=1e-5)
        assert served["tiny"][metric] > 1
