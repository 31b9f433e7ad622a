# SPDX-License-Identifier: Apache-2.0
"""Artefacts in their runtimes against the model that they were written from."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from prunec.compiler.model.checkpoint import Checkpoint
from prunec.compiler.model.folder import facts_from_folder
from prunec.compiler.model.layout import LayerSelection
from prunec.compiler.model.surgery import slice_layer
from prunec.exporters import exporter_for
from prunec.exporters.artefact import Provenance
from prunec.validators.errors import ValidationError
from prunec.validators.loading import open_model
from prunec.validators.parity import TOLERANCES, measure_parity, reference_answers
from prunec.validators.parity_answers import Answers, ReferenceAnswers, compare

MakeModel = Callable[..., Path]

PROVENANCE = Provenance("method: {kind: tyr}\n", {}, "examples/dense", "tyr", "no text")
#: Layer 0 without attention, layer 1 thinner.
KEPT = (
    LayerSelection((), (), tuple(range(0, 96, 3))),
    LayerSelection((1, 2), (0, 1), tuple(range(40))),
)


@pytest.fixture(scope="module")
def dense(tiny_llama: MakeModel) -> Path:
    return tiny_llama(layers=2, head_dim=32)


@pytest.fixture(scope="module")
def reference(dense: Path) -> ReferenceAnswers:
    return answers_of(dense)


def answers_of(folder: Path) -> ReferenceAnswers:
    prompts = torch.randint(3, 300, (4, 9), generator=torch.Generator().manual_seed(0))
    return reference_answers(open_model(folder, torch.float32), prompts, 8)


def test_the_reference_is_what_the_model_generates(
    dense: Path, reference: ReferenceAnswers
) -> None:
    model = AutoModelForCausalLM.from_pretrained(dense)
    generated = model.generate(
        input_ids=reference.prompts, max_new_tokens=8, do_sample=False, eos_token_id=None
    )
    assert torch.equal(generated[:, 9:], reference.tokens)
    with torch.no_grad():
        due = model(generated).logits[:, 8:-1].double().log_softmax(-1)
    torch.testing.assert_close(reference.log_probs.double(), due.topk(20).values, rtol=0, atol=1e-5)


def test_a_function_of_ids_can_be_the_reference(dense: Path, reference: ReferenceAnswers) -> None:
    model = open_model(dense, torch.float32).model
    found = reference_answers(lambda ids: model(ids).logits, reference.prompts, 8)
    assert torch.equal(found.log_probs, reference.log_probs)
    assert found.tokenizer is None
    for prompts, tokens in ((torch.zeros(0, 3), 4), (torch.zeros(2, 0), 4), (torch.ones(2, 3), 0)):
        with pytest.raises(ValidationError, match="nothing to compare"):
            reference_answers(model, prompts, tokens)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_transformers_agrees_to_the_rounding_of_its_dtype(
    dtype: str, dense: Path, reference: ReferenceAnswers
) -> None:
    found = measure_parity("hf", dense, reference, dtype=dtype)
    assert found.same
    assert found.tolerance == TOLERANCES[dtype]
    assert found.difference > 0
    if dtype == "float32":
        assert found.compared > 28


def test_another_model_is_not_taken_for_it(
    tiny_llama: MakeModel, reference: ReferenceAnswers
) -> None:
    found = measure_parity("hf", tiny_llama(layers=2, head_dim=32, seed=1), reference)
    assert not found.same and found.error is None
    assert found.difference > 1 and found.agreed < found.compared


def hand_made(log_probs: list[list[float]]) -> ReferenceAnswers:
    """One prompt; token 0 is likeliest everywhere, token 1 next."""
    found = torch.tensor([log_probs])
    tokens = torch.zeros(1, len(log_probs), dtype=torch.long)
    return ReferenceAnswers(tokens, tokens, torch.arange(2).expand(found.shape), found)


def test_tokens_are_not_compared_at_near_ties_nor_behind_another_token() -> None:
    due = hand_made([[-0.1, -3.0], [-0.7, -0.75], [-0.1, -3.0], [-0.1, -3.0]])
    far = due.log_probs.clone()
    far[0, 3] += 7.0  # read after another text than the reference's

    def compared(tokens: list[int], reached: int) -> tuple[float, int, int]:
        answers = Answers(torch.tensor([tokens]), far, torch.tensor([reached]))
        return compare(due, answers, 0.05)

    assert compared([0, 1, 0, 0], 2) == (0.0, 1, 1)  # the near-tie came out otherwise
    assert compared([0, 0, 1, 0], 3) == (0.0, 1, 2)
    assert compared([0, 0, 0, 0], 4) == (7.0, 3, 3)


def test_what_is_ruled_out_in_both_is_no_difference_and_nan_is_no_parity(
    dense: Path, reference: ReferenceAnswers
) -> None:
    due = hand_made([[-0.1, -torch.inf]])
    answers = Answers(due.tokens, due.log_probs, torch.tensor([1]))
    assert compare(due, answers, 0.1)[0] == 0
    broken = reference.log_probs.clone()
    broken[1, 2, 3] = torch.nan
    found = measure_parity("hf", dense, replace(reference, log_probs=broken))
    assert not found.same
    assert found.error == "the model in memory answers NaN"


def test_another_tokenizer_or_no_model_is_an_error_of_the_result(
    dense: Path, reference: ReferenceAnswers, tmp_path: Path
) -> None:
    folder = shutil.copytree(dense, tmp_path / "copy")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["eos_token"] = "<s>"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    found = measure_parity("hf", folder, reference)
    assert found.error == "the tokenizer ends a text with token 1, it should be 2"
    (folder / "model.safetensors").unlink()
    for kind in ("hf", "onnx", "gguf"):
        found = measure_parity(kind, folder, reference)
        assert not found.same and found.error, kind


def test_a_runtime_that_breaks_is_an_error_of_the_result(
    dense: Path, reference: ReferenceAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaking(*_: object, **__: object) -> None:
        raise RuntimeError("shapes do not match\nand more")

    monkeypatch.setattr("prunec.validators.parity_hf.open_model", breaking)
    found = measure_parity("hf", dense, reference)
    assert not found.same
    assert found.error == "RuntimeError: shapes do not match"


def test_a_missing_runtime_says_what_to_install(
    dense: Path, reference: ReferenceAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr("prunec.validators.parity_vllm.find_spec", lambda name: None)
    onnx, vllm = (measure_parity(kind, dense, reference) for kind in ("onnx", "vllm"))
    assert onnx.error == "onnxruntime is not installed; pip install 'prunec[onnx]'"
    assert vllm.error is not None and "pip install 'prunec[vllm]'" in vllm.error
    assert not onnx.same and not vllm.same


def exported(folder: Path, source: Path, kind: str, **settings: object) -> Path:
    """KEPT of a model, as the compiler writes it."""
    facts = facts_from_folder(source)
    checkpoint, family = Checkpoint(source, facts), facts.family

    def tensors() -> Iterator[tuple[str, Tensor]]:
        yield family.embedding, checkpoint.tensor(family.embedding)
        for index, kept in enumerate(KEPT):
            for name, tensor in slice_layer(facts, checkpoint.layer(index), kept).items():
                yield family.in_layer(index, name), tensor
        yield family.final_norm, checkpoint.tensor(family.final_norm)
        yield family.head, checkpoint.tensor(family.head)

    folder.mkdir()
    layout = tuple(kept.spec(facts.head_dim) for kept in KEPT)
    exporter_for({"kind": kind, **settings}).load().export(
        folder,
        source,
        facts,
        layout,
        "per_layer",
        tensors(),
        torch.float32,
        provenance=PROVENANCE,
        **settings,
    )
    return folder


@pytest.fixture(scope="module")
def per_layer(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "hf"
    return exported(folder, dense, "hf", max_shard_bytes=1 << 30)


@pytest.fixture(scope="module")
def pruned_reference(per_layer: Path) -> ReferenceAnswers:
    return answers_of(per_layer)


def test_a_per_layer_folder_agrees_by_its_own_modeling_file(
    per_layer: Path, pruned_reference: ReferenceAnswers
) -> None:
    found = measure_parity("hf", per_layer, pruned_reference, trust_remote_code=True)
    assert found.same and found.compared > 28


@pytest.mark.skipif(
    not (find_spec("onnxruntime") and find_spec("onnxscript")),
    reason="needs the packages of prunec[onnx]",
)
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_onnx_runtime_agrees_to_the_precision_of_its_graph(
    precision: str, dense: Path, pruned_reference: ReferenceAnswers, tmp_path: Path
) -> None:
    folder = exported(tmp_path / "onnx", dense, "onnx", precision=precision)
    found = measure_parity("onnx", folder, pruned_reference)
    assert found.same
    assert found.tolerance == TOLERANCES[precision]
    assert precision != "float32" or found.compared > 28

    damage(folder / "model.onnx.data")
    assert not measure_parity("onnx", folder, pruned_reference).same
    (folder / "model.onnx").write_bytes(b"no graph")
    damaged = measure_parity("onnx", folder, pruned_reference)
    assert damaged.error is not None and "ONNX Runtime does not open" in damaged.error


def damage(path: Path) -> None:
    """Move every weight of the first half of a file to where another was."""
    content = path.read_bytes()
    half = len(content) // 128 * 64
    path.write_bytes(content[half // 2 : half] + content[: half // 2] + content[half:])


@pytest.mark.vllm
@pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is not installed: make setup")
def test_vllm_agrees_on_a_per_layer_folder(
    per_layer: Path, pruned_reference: ReferenceAnswers
) -> None:
    found = measure_parity("vllm", per_layer, pruned_reference)
    assert found.same and found.compared > 28
