# SPDX-License-Identifier: Apache-2.0
"""What people do with a model of transformers they can do with an export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline

from tests.exporters.conftest import TOKENS, logits


def test_a_layer_without_attention_records_and_trains_like_any_other(
    per_layer: tuple[Path, Path],
) -> None:
    model = AutoModelForCausalLM.from_pretrained(per_layer[1])
    model.set_attn_implementation("eager")  # the only one that gives attention weights
    recorded = model(TOKENS, output_hidden_states=True, output_attentions=True)
    assert len(recorded.hidden_states) == 6
    assert [tuple(weights.shape[:2]) for weights in recorded.attentions] == [(4, 2), (4, 2), (4, 4)]
    model.train().gradient_checkpointing_enable()
    model(TOKENS, labels=TOKENS, use_cache=False).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_an_artefact_drafts_for_the_dense_model_and_is_drafted_for(
    per_layer: tuple[Path, Path],
) -> None:
    dense, pruned = (AutoModelForCausalLM.from_pretrained(folder) for folder in per_layer)
    greedy = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
    for model, assistant in ((dense, pruned), (pruned, dense)):
        plain = model.generate(TOKENS[:1], **greedy)
        assert torch.equal(model.generate(TOKENS[:1], assistant_model=assistant, **greedy), plain)


def test_a_pipeline_continues_text_with_an_artefact(per_layer: tuple[Path, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(per_layer[1])
    tokenizer = AutoTokenizer.from_pretrained(per_layer[1])
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
    (said,) = generate("def self", max_new_tokens=5, do_sample=False, return_full_text=False)
    ids = tokenizer("def self", return_tensors="pt")
    expected = model.generate(**ids, max_new_tokens=5, do_sample=False)[0, ids.input_ids.shape[1] :]
    assert said["generated_text"] == tokenizer.decode(expected, skip_special_tokens=True)


def test_an_adapter_is_trained_on_an_artefact_and_merged(per_layer: tuple[Path, Path]) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed: `make setup` does")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"])
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(per_layer[1]), config)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        loss = model(TOKENS, labels=TOKENS).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    tuned = logits(model.eval())
    torch.testing.assert_close(logits(model.merge_and_unload()), tuned, atol=1e-4, rtol=0)


def test_a_loaded_model_saves_as_it_was_loaded(
    per_layer: tuple[Path, Path], tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(per_layer[1])
    assert isinstance(AutoModel.from_pretrained(per_layer[1]), type(model.model))
    model.save_pretrained(tmp_path)
    for name in ("per_layer_config", "auto_map", "num_attention_heads", "intermediate_size"):
        first, second = (
            json.loads((folder / "config.json").read_text()) for folder in (per_layer[1], tmp_path)
        )
        assert first[name] == second[name]
    assert (tmp_path / "modeling_prunec_llama.py").exists()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(model))
