# SPDX-License-Identifier: Apache-2.0
"""Folders for vLLM, opened by vLLM: it answers as transformers does, in float32."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from prunec.compiler.model.checkpoint import Checkpoint
from prunec.compiler.model.folder import facts_from_folder
from prunec.compiler.model.layout import LayerSelection, kv_bytes_per_token
from prunec.compiler.model.surgery import slice_layer
from prunec.exporters import exporter_for
from prunec.exporters.artefact import Provenance
from prunec.exporters.hf_rules import LayoutKind, attention_is_legal
from tests.conftest import make_published
from tests.published_configs import PUBLISHED

MakeModel = Callable[..., Path]

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is not installed: make setup"),
]

PROVENANCE = Provenance("method: {kind: tyr}\n", {}, "examples/dense", "tyr", "no text")
PROMPTS = [list(range(3, 20)), [5, 6, 7], list(range(40, 140))]
SETTINGS = {"kind": "vllm", "dialect": "plugin", "tensor_parallel": 1}


def selection(query_heads: tuple[int, ...], neurons: range) -> LayerSelection:
    """Of four query heads on two KV heads."""
    return LayerSelection(query_heads, tuple(sorted({q // 2 for q in query_heads})), tuple(neurons))


# Layer 0 without attention, 2 without MLP, 3 empty; the others thinner in one way or another.
PER_LAYER = (
    selection((), range(0, 96, 3)),
    selection((1, 2), range(7)),
    selection((2, 3), range(0)),
    selection((), range(0)),
    selection((0, 1, 2, 3), range(1, 96)),
    selection((3,), range(40)),
)
DECILM = (
    selection((0, 3), range(0)),
    selection((2,), range(7)),
    selection((2, 3), range(0)),
    selection((), range(0)),
    selection((), range(1, 96)),
    selection((0, 1, 2, 3), range(40)),
)
UNIFORM = tuple(selection((q, 3 - q), range(q, 96, 3)) for q in (0, 1, 0, 1, 1, 0))
WHOLE_HEADS = tuple(selection((0, 1, 2, 3), range(q, 96, 3)) for q in (0, 1, 0, 1, 1, 0))
# What two ranks can share; one KV head is held by both.
SPLIT = (
    selection((), range(0, 96, 3)),
    selection((1, 2), range(8)),
    selection((2, 3), range(0)),
    selection((), range(0)),
    selection((0, 1, 2, 3), range(2, 96)),
    selection((0, 1), range(40)),
)

#: What is special about a family; vLLM's attention for CPUs knows few sizes of a head.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"biased": True},
    "mistral": {"sliding_window": 7},
    "qwen2": {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2},
    "qwen3": {},
    "phi3": {
        "hidden": 128,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1 + 0.25 * i for i in range(16)],
            "long_factor": [2.0] * 16,
        },
        # As long as the model is served for: vLLM takes one set of factors for all lengths.
        "original_max_position_embeddings": 512,
    },
    "gemma2": {"sliding_window": 7, "query_pre_attn_scalar": 16, "tied": True},
    "gemma3_text": {"sliding_window": 7, "sliding_window_pattern": 2, "tied": True},
}
# One of a KV head's query heads beside two of another's.
UNEVEN = (LayerSelection((0, 1, 3), (0, 1), tuple(range(96)), query_groups=(2, 1)), *PER_LAYER[1:])
#: Families that vLLM's stock DeciLM computes.
STOCK = ("llama", "mistral", "qwen2")
#: OLMo 2 comes last: the stand-in that vLLM has for it leaves its marks on transformers' classes.
UNIFORMLY = (*FAMILIES, "olmo2")
#: Published configs that leave the size of a head to the number of heads.
BARE: dict[str, LayoutKind] = {"Qwen2.5": "uniform", "Phi-4": "per_layer"}


def written(
    folder: Path,
    source: Path,
    selections: tuple[LayerSelection, ...],
    layout_kind: LayoutKind,
    **settings: Any,
) -> Path:
    facts = facts_from_folder(source)
    layout = tuple(each.spec(facts.head_dim) for each in selections)
    writer = exporter_for(SETTINGS | settings).load()
    folder.mkdir(parents=True)
    tensors = _pruned(source, selections)
    args = (folder, source, facts, layout, layout_kind, tensors, torch.float32)
    writer.export(*args, provenance=PROVENANCE, max_shard_bytes=1 << 30)
    writer.verify(folder, layout, facts)
    return folder


def _pruned(source: Path, selections: tuple[LayerSelection, ...]) -> Iterator[tuple[str, Tensor]]:
    facts = facts_from_folder(source)
    checkpoint, family = Checkpoint(source, facts), facts.family
    yield family.embedding, checkpoint.tensor(family.embedding)
    for index, kept in enumerate(selections):
        for name, tensor in slice_layer(facts, checkpoint.layer(index), kept).items():
            yield family.in_layer(index, name), tensor
    yield family.final_norm, checkpoint.tensor(family.final_norm)
    if not facts.tied:
        yield family.head, checkpoint.tensor(family.head)


@pytest.fixture(scope="module")
def folders(tiny_llama: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Artefacts by name. What vLLM's stock DeciLM is to compute, transformers has per layer."""
    root, found = tmp_path_factory.mktemp("vllm"), {}
    for model_type, special in FAMILIES.items():
        dense = tiny_llama(model_type=model_type, layers=6, head_dim=32, **special)
        found[f"{model_type} per layer"] = written(
            root / model_type / "per_layer", dense, PER_LAYER, "per_layer"
        )
    for model_type in ("llama", "gemma3_text"):
        dense = tiny_llama(model_type=model_type, layers=6, head_dim=32, **FAMILIES[model_type])
        found[f"{model_type} split"] = written(
            root / model_type / "split", dense, SPLIT, "per_layer", tensor_parallel=2
        )
    for model_type in UNIFORMLY:
        special = FAMILIES.get(model_type, {})
        dense = tiny_llama(model_type=model_type, layers=6, head_dim=32, **special)
        facts = facts_from_folder(dense)
        kept = UNIFORM if attention_is_legal(facts, "uniform", 2, 2) else WHOLE_HEADS
        found[f"{model_type} uniform"] = written(
            root / model_type / "uniform", dense, kept, "uniform"
        )
    dense = tiny_llama(model_type="llama", layers=6, head_dim=32, **FAMILIES["llama"])
    found["uneven"] = written(root / "uneven", dense, UNEVEN, "per_layer", kind="hf")
    for name, kind in BARE.items():
        config = PUBLISHED[name] | {"hidden_size": 128, "num_hidden_layers": 6}
        dense = make_published(root / name / "dense", config)
        kept = UNIFORM if kind == "uniform" else PER_LAYER
        found[name] = written(root / name / kind, dense, kept, kind)
    for model_type in STOCK:
        dense = tiny_llama(model_type=model_type, layers=6, head_dim=32, **FAMILIES[model_type])
        here = root / model_type
        found[f"{model_type} decilm"] = written(
            here / "decilm", dense, DECILM, "per_layer", dialect="decilm"
        )
        found[f"{model_type} decilm, per layer"] = written(
            here / "decilm_plugin", dense, DECILM, "per_layer"
        )
    return found


@pytest.fixture(scope="module")
def adapter(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter for every projection of the per-layer Llama, with weights that matter."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = AutoModelForCausalLM.from_pretrained(folders["llama per layer"])
    everywhere = "all-linear"
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=everywhere))
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.2 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("adapter")
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def answers(
    folders: dict[str, Path], adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What vLLM makes of all of them, in one process: starting it is what takes time."""
    requests: dict[str, dict[str, Any]] = {}
    for name, folder in folders.items():
        if name.endswith(" split"):
            continue
        remote = {"trust_remote_code": True} if name.endswith(" decilm") else {}
        requests[name] = {"folder": str(folder), "options": remote, "prompts": PROMPTS}
    last = {name: requests.pop(name) for name in ("olmo2 uniform", "uneven")}
    llama = requests["llama per layer"]
    chunked = {"max_num_batched_tokens": 32, "max_num_seqs": 4, "block_size": 32}
    requests["chunked, cached"] = llama | {
        "options": chunked | {"enable_prefix_caching": True},
        "rounds": 2,
    }
    requests["adapted"] = llama | {
        "options": {"enable_lora": True, "max_lora_rank": 8},
        "adapter": str(adapter),
    }
    return answered(requests | last, tmp_path_factory.mktemp("answers"))


def answered(requests: dict[str, Any], work: Path) -> dict[str, Any]:
    """What vLLM answers, in a process of its own."""
    (work / "requests.json").write_text(json.dumps(requests))
    script = Path(__file__).with_name("vllm_answers.py")
    run = subprocess.run(
        [sys.executable, str(script), "requests.json", "answers.json"],
        cwd=work,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-8000:]
    found: dict[str, Any] = json.loads((work / "answers.json").read_text())
    return found


@pytest.fixture(scope="module")
def hard_answers(
    folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """As `answers`, of what takes minutes."""
    split = {"tensor_parallel_size": 2}
    requests = {
        f"{model_type} split": {
            "folder": str(folders[f"{model_type} split"]),
            "options": split,
            "prompts": PROMPTS,
        }
        for model_type in ("llama", "gemma3_text")
    }
    # One after the other: what was compiled for the first must not be taken for the second.
    for name in ("llama per layer", "llama split"):
        requests[f"{name}, compiled"] = {
            "folder": str(folders[name]),
            "options": {"enforce_eager": False},
            "prompts": PROMPTS,
        }
    return answered(requests, tmp_path_factory.mktemp("hard"))


def opened(folder: Path) -> Any:
    # Written out, since the kernels that transformers would take ignore Gemma 2's soft caps.
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")


def assert_as(model: Any, answer: dict[str, Any]) -> None:
    """Greedy tokens, and log-probabilities of the most likely ones, as the model has them."""
    for prompt, tokens, logprobs in zip(PROMPTS, answer["tokens"], answer["logprobs"], strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0]
        due = logits.double().log_softmax(-1)[len(prompt) - 1 : -1]
        assert due.argmax(-1).tolist() == tokens
        for step, found in enumerate(logprobs):
            for token, logprob in found.items():
                assert abs(due[step, int(token)] - logprob) < 5e-5


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_per_layer_model_answers_as_transformers_does(
    model_type: str, folders: dict[str, Path], answers: dict[str, Any]
) -> None:
    name = f"{model_type} per layer"
    assert answers[name]["architecture"].startswith("Prunec")
    assert_as(opened(folders[name]), answers[name])


@pytest.mark.parametrize("model_type", UNIFORMLY)
def test_a_uniform_model_answers_as_transformers_does(
    model_type: str, folders: dict[str, Path], answers: dict[str, Any]
) -> None:
    name = f"{model_type} uniform"
    # vLLM's stock Qwen2 reads no head_dim, and no windows of single layers.
    assert answers[name]["architecture"].startswith("Prunec") == (model_type == "qwen2")
    assert_as(opened(folders[name]), answers[name])


@pytest.mark.parametrize("name", BARE)
def test_a_model_that_was_published_without_head_dim_answers_as_transformers_does(
    name: str, folders: dict[str, Path], answers: dict[str, Any]
) -> None:
    assert_as(opened(folders[name]), answers[name])


@pytest.mark.parametrize("model_type", STOCK)
def test_the_stock_dialect_answers_as_the_model_that_it_was_made_of(
    model_type: str, folders: dict[str, Path], answers: dict[str, Any]
) -> None:
    assert answers[f"{model_type} decilm"]["architecture"] == "DeciLMForCausalLM"
    model = opened(folders[f"{model_type} decilm, per layer"])
    assert_as(model, answers[f"{model_type} decilm"])


def test_uneven_query_heads_are_refused_in_a_sentence(answers: dict[str, Any]) -> None:
    refused = "layer 0 has KV heads that serve different numbers of query heads, which vLLM's"
    assert answers["uneven"]["refused"].startswith(refused)


def test_chunked_prefill_and_prefix_caching_change_no_answer(
    folders: dict[str, Path], answers: dict[str, Any]
) -> None:
    found = answers["chunked, cached"]
    assert found["cached"][-1] == 96  # all blocks of the longest prompt that are full
    assert_as(opened(folders["llama per layer"]), found)


def test_a_lora_adapter_made_with_peft_is_served(
    folders: dict[str, Path], adapter: Path, answers: dict[str, Any]
) -> None:
    peft = pytest.importorskip("peft")
    plain = opened(folders["llama per layer"])
    assert answers["adapted"]["tokens"] != answers["llama per layer"]["tokens"]
    assert_as(peft.PeftModel.from_pretrained(plain, adapter).eval(), answers["adapted"])


def test_the_kv_cache_takes_what_the_layers_need(
    folders: dict[str, Path], answers: dict[str, Any], tiny_llama: MakeModel
) -> None:
    dense = tiny_llama(model_type="llama", layers=6, head_dim=32, **FAMILIES["llama"])
    layout = tuple(each.spec(32) for each in PER_LAYER)
    due = kv_bytes_per_token(facts_from_folder(dense), layout, bytes_per_value=4)
    found = answers["llama per layer"]
    assert found["kv_bytes_per_block"] == due * found["block_size"]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_two_tensor_parallel_ranks_answer_as_one_does(
    model_type: str, folders: dict[str, Path], hard_answers: dict[str, Any]
) -> None:
    name = f"{model_type} split"
    assert_as(opened(folders[name]), hard_answers[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama per layer", "llama split"])
def test_a_compiled_model_answers_as_transformers_does(
    name: str, folders: dict[str, Path], hard_answers: dict[str, Any]
) -> None:
    assert_as(opened(folders[name]), hard_answers[f"{name}, compiled"])
