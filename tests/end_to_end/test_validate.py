# SPDX-License-Identifier: Apache-2.0
"""`prunec validate` on what others hand over: sound artefacts, broken ones and hostile ones."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Fault = Callable[[Path], None]

#: Plain Llama layers, so that the artefact can be the model that another one is judged against.
QUICK = ("method={kind: uniform}", "search=null", "target.layout=uniform")
TEXT = "source: {kind: text, files: [judge.txt]}, sequence_length: 32, tokens: 512"
STRICT = (
    f"validate={{perplexity: {{{TEXT}, max_ratio: 1.0001, max_divergence: 0.001}}, "
    "parity: {prompts: 2, new_tokens: 4}}",
)
WEIGHTS = "model.safetensors"
HEAD_DIM = 16


def options(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def report_of(output: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((output / "report" / "report.json").read_text("utf-8"))
    return report


def failures(output: Path) -> dict[str, str]:
    """The messages of gates that failed, by name; of several problems the first."""
    gates = reversed(report_of(output)["gates"])
    return {gate["name"]: gate["message"] for gate in gates if gate["verdict"] == "failed"}


@pytest.fixture(scope="module")
def pruned(recipe: Path, prunec: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a build of a plain pruned model. Do not write to it."""
    output = tmp_path_factory.mktemp("pruned")
    done = prunec("build", recipe, "--output", output, *options(*QUICK))
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture
def artefact(pruned: Path, tmp_path: Path) -> Path:
    """A copy of its artefact as another tool would have written it: without our list of files."""
    folder = shutil.copytree(pruned / "hf", tmp_path / "artefact")
    shutil.rmtree(folder / "prunec")
    return folder


@pytest.fixture
def judge(recipe: Path, pruned: Path, prunec: Run, tmp_path: Path) -> Run:
    """`judge(folder)`: against the sound artefact, which is to be matched. Output: `judged`."""

    def run(folder: Path) -> subprocess.CompletedProcess[str]:
        against = ("--recipe", recipe, "--against", pruned / "hf", *options(*STRICT))
        return prunec("validate", folder, *against, "--output", tmp_path / "judged")

    return run


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), encoding="utf-8")


def in_weights(change: Callable[[dict[str, Tensor]], None]) -> Fault:
    @wraps(change)
    def fault(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return fault


@in_weights
def swap_layers(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if ".layers.0." in name]:
        other = name.replace(".0.", ".1.")
        tensors[name], tensors[other] = tensors[other], tensors[name]


@in_weights
def zero_kv_head(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.1.self_attn.v_proj.weight"][:HEAD_DIM] = 0


@in_weights
def put_nan(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan


@in_weights
def widen(tensors: dict[str, Tensor]) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].float()


def swap_tokens(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    edit(path, **content)


def halve_heads(folder: Path) -> None:
    """Twice as many heads, half as wide: all shapes stay as they are."""
    edit(folder / "config.json", num_attention_heads=4, num_key_value_heads=2, head_dim=8)


@pytest.mark.parametrize(
    ("fault", "gate", "says"),
    [
        (swap_layers, "perplexity.max_divergence", "divergence "),
        (zero_kv_head, "perplexity.max_divergence", "divergence "),
        (put_nan, "perplexity.finite", "the pruned model's perplexity is not a finite number"),
        (widen, "artefact.intact", "1 tensors are of another dtype: model.layers.1.mlp.up_proj"),
        (
            swap_tokens,
            "artefact.intact",
            "the tokenizer is another one: 'a' is token 68, it should be 67",
        ),
        (halve_heads, "perplexity.max_divergence", "divergence "),
    ],
    ids=["layers", "kv head", "nan", "dtype", "tokenizer", "head width"],
)
def test_a_planted_fault_fails_a_gate_that_says_what_it_is(
    fault: Fault, gate: str, says: str, artefact: Path, judge: Run, tmp_path: Path
) -> None:
    fault(artefact)
    done = judge(artefact)
    assert done.returncode == 1, done.stderr
    assert says in failures(tmp_path / "judged")[gate]
    assert "failed" in done.stdout


def test_an_artefact_without_a_fault_is_the_model_that_it_is(
    artefact: Path, judge: Run, tmp_path: Path
) -> None:
    done = judge(artefact)
    assert done.returncode == 0, done.stdout + done.stderr
    report = report_of(tmp_path / "judged")
    ratio = report["perplexity"]["ratio"]
    assert (ratio["low"], ratio["value"], ratio["high"]) == (1, 1, 1)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (
            lambda folder: edit(folder / "config.json", num_attention_heads=4),
            "o_proj.weight is [64, 32], by config.json it is [64, 64]",
        ),
        (lambda folder: (folder / "tokenizer.json").unlink(), "the tokenizer of"),
    ],
    ids=["heads", "no tokenizer"],
)
def test_what_cannot_be_opened_is_a_failure_with_its_reason(
    fault: Fault, says: str, artefact: Path, judge: Run, tmp_path: Path
) -> None:
    fault(artefact)
    done = judge(artefact)
    assert done.returncode == 3
    told, hint = done.stderr.strip().splitlines()[-2:]
    assert told.startswith("measure-pruned: ") and says in told and told[-1] not in ":!"
    assert hint.startswith("  hint: ")
    assert not (tmp_path / "judged" / "report").exists()


def test_a_changed_file_of_a_build_is_named_wherever_it_is_judged(
    pruned: Path, recipe: Path, prunec: Run, tmp_path: Path
) -> None:
    build = shutil.copytree(pruned, tmp_path / "build")
    sound = ("--recipe", recipe, "--output", tmp_path / "judged")
    assert prunec("validate", build, *sound).returncode == 0
    zero_kv_head(build / "hf")
    for folder, where in ((build, "hf/model.safetensors"), (build / "hf", "model.safetensors")):
        done = prunec("validate", folder, *sound)
        assert done.returncode == 1, done.stderr
        told = failures(tmp_path / "judged")["artefact.intact"]
        assert told.startswith(f"{where} was changed: its SHA-256 is not that of ")


def test_a_copy_of_the_dense_model_passes_with_a_ratio_of_one(
    recipe: Path, prunec: Run, tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_llama(), tmp_path / "copy")
    command = ("validate", copy, "--recipe", recipe, "--output", tmp_path / "out")
    done = prunec(*command, *options(*STRICT), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["passed"] is True and report["perplexity"]["divergence"]["high"] == 0
    ratio = report["perplexity"]["ratio"]
    assert (ratio["low"], ratio["value"], ratio["high"]) == (1, 1, 1)
    assert f"--recipe {recipe}" in report["command"]


def pad_vocabulary(folder: Path) -> None:
    """Eight rows more, which no token of the tokenizer's is."""
    tensors = load_file(folder / WEIGHTS)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:
            rows = tensors[name]
            tensors[name] = torch.cat([rows, rows.new_zeros(8, rows.shape[1])])
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    size = json.loads((folder / "config.json").read_text("utf-8"))["vocab_size"]
    edit(folder / "config.json", vocab_size=size + 8)


def test_of_a_padded_vocabulary_all_but_divergence_is_measured(
    recipe: Path, prunec: Run, tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_llama(), tmp_path / "copy")
    pad_vocabulary(copy)
    gates = f"validate={{perplexity: {{{TEXT}, max_ratio: 2.0, max_divergence: 9.0}}}}"
    against = ("--recipe", recipe, "--output", tmp_path / "judged")
    done = prunec("validate", copy, *against, *options(gates))
    assert done.returncode == 1
    assert "warning: " in done.stderr and "divergence is not measured" in done.stderr
    report = report_of(tmp_path / "judged")
    assert 1 < report["perplexity"]["ratio"]["value"] < 1.5
    assert report["perplexity"]["divergence"]["value"] is None
    reason = "so that their distributions cannot be compared"
    assert [*failures(tmp_path / "judged")] == ["perplexity.max_divergence"]
    assert reason in failures(tmp_path / "judged")["perplexity.max_divergence"]
    assert reason in (tmp_path / "judged" / "report" / "report.md").read_text()
    assert reason in " ".join(done.stdout.split())


def test_a_build_knows_what_it_was_made_from(
    pruned: Path, prunec: Run, tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    quick = options(
        "validate={perplexity: {source: {kind: python_stdlib}, sequence_length: 32, tokens: 64}}"
    )
    for folder in (pruned, pruned / "hf"):
        done = prunec("validate", folder, "--output", tmp_path / folder.name, *quick)
        assert done.returncode == 0, done.stderr
        assert f"against {tiny_llama()}, which it was made from" in done.stderr
        assert "was changed since" not in done.stderr
        assert report_of(tmp_path / folder.name)["perplexity"]["ratio"]["value"] != 1
        assert prunec("verify", tmp_path / folder.name).returncode == 0
        told = prunec("inspect", tmp_path / folder.name)
        assert told.returncode == 0 and "results of validate, no gates" in told.stdout
    alone = shutil.copytree(pruned / "hf", tmp_path / "alone")
    done = prunec("validate", alone, "--output", tmp_path / "out")
    assert done.returncode == 2 and "give it by --against" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_dense_model_that_has_changed_since_is_told(
    pruned: Path, prunec: Run, tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    dense = shutil.copytree(tiny_llama(), tmp_path / "dense")
    zero_kv_head(dense)
    build = shutil.copytree(pruned, tmp_path / "build")
    known = build / ".store" / "model.json"
    edit(known, source=str(dense))
    quick = options(
        "validate={perplexity: {source: {kind: python_stdlib}, sequence_length: 32, tokens: 64}}"
    )
    done = prunec("validate", build, "--output", tmp_path / "judged", *quick)
    assert f"{dense} was changed since the artefacts were made from it" in done.stderr


@pytest.mark.skipif(find_spec("optimum") is not None, reason="GPTQ could be opened here")
def test_a_quantised_model_that_cannot_be_opened_is_told_before_anything_is_measured(
    artefact: Path, judge: Run
) -> None:
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    edit(artefact / "config.json", quantization_config=settings)
    done = judge(artefact)
    assert done.returncode == 3 and "is quantised (gptq) and cannot be opened here" in done.stderr
    assert "measure-dense" not in done.stderr


CODE = """\
from pathlib import Path
Path({marker!r}).write_text("was run")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class TheirConfig(LlamaConfig):
    model_type = "theirs"
class TheirModel(LlamaForCausalLM):
    config_class = TheirConfig
class TheirTokenizer(PreTrainedTokenizerFast):
    pass
"""


def name_classes(folder: Path, module: str) -> None:
    names = {"AutoConfig": "TheirConfig", "AutoModelForCausalLM": "TheirModel"}
    edit(
        folder / "config.json", auto_map={auto: f"{module}.{name}" for auto, name in names.items()}
    )


def beside_a_stock_model(folder: Path, code: str) -> None:
    (folder / "modeling_theirs.py").write_text(code)
    name_classes(folder, "modeling_theirs")


def of_an_unknown_model(folder: Path, code: str) -> None:
    beside_a_stock_model(folder, code)
    edit(folder / "config.json", model_type="theirs", architectures=["TheirModel"])


def under_our_name(folder: Path, code: str) -> None:
    (folder / "modeling_prunec.py").write_text(code)
    name_classes(folder, "modeling_prunec")
    edit(folder / "config.json", model_type="theirs")


def in_the_tokenizer(folder: Path, code: str) -> None:
    (folder / "tokens.py").write_text(code)
    classes = ["tokens.TheirTokenizer"] * 2
    edit(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": classes},
        tokenizer_class="TheirTokenizer",
    )


def in_another_folder(folder: Path, code: str) -> None:
    other = folder.parent / "other"
    other.mkdir()
    (other / "modeling_theirs.py").write_text(code)
    name_classes(folder, f"{other}--modeling_theirs")


@pytest.mark.parametrize(
    "hide",
    [
        beside_a_stock_model,
        of_an_unknown_model,
        under_our_name,
        in_the_tokenizer,
        in_another_folder,
    ],
)
def test_code_of_others_is_never_run(
    hide: Callable[[Path, str], None], artefact: Path, judge: Run, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    hide(artefact, CODE.format(marker=str(marker)))
    done = judge(artefact)
    assert not marker.exists()
    # Where transformers has a class of its own for it, the model is judged with that.
    if done.returncode != 0:
        assert done.returncode == 3
        assert done.stderr.strip().splitlines()[-2].startswith("measure-pruned: ")
        assert "custom code" in done.stderr
