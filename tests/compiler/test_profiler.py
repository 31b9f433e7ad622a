# SPDX-License-Identifier: Apache-2.0
"""What is timed is the work of a model: chains of layers and empty models, held against one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM

from prunec.compiler import profiler
from prunec.compiler.model.folder import facts_from_folder
from prunec.compiler.model.layout import LayerSpec
from prunec.compiler.profiler import profile

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for one another on a busy machine would be most of what is measured."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("options", [{}, {"biased": True, "kv_heads": 4}, {"tied": True}])
@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("sublayer", ["self_attn", "mlp"])
@torch.no_grad()
def test_a_chain_does_what_the_sublayers_of_a_model_do(
    tiny_llama: Callable[..., Path], options: dict[str, Any], decode: bool, sublayer: str
) -> None:
    folder = tiny_llama(**options)
    facts = facts_from_folder(folder)
    bench = profiler._Bench(facts, torch.float32, CPU, batch=2, tokens=7)
    spec = LayerSpec(facts.query_heads, facts.kv_heads, facts.head_dim, 0)
    if sublayer == "mlp":
        spec = LayerSpec(0, 0, facts.head_dim, facts.ffn)
    made = bench.chain(spec, decode)()()
    assert isinstance(made, Tensor)

    # transformers' own model with the weights that were drawn; the other sublayer adds nothing.
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).model
    for layer, pool in zip(model.layers, bench.pools, strict=True):
        for name, parameter in layer.named_parameters():
            if name.startswith(sublayer):
                parameter.copy_(pool[name].view_as(parameter))
            else:
                parameter.fill_(1.0 if "norm" in name else 0.0)
    cache = DynamicCache()
    for index in range(facts.layers if decode else 0):
        cache.update(bench.cached, bench.cached, index)
    start = bench.prompt[:, :1] if decode else bench.prompt
    expected = model(inputs_embeds=start, past_key_values=cache).last_hidden_state
    torch.testing.assert_close(model.norm(made), expected, rtol=0, atol=1e-5)


def test_a_table_is_complete_and_more_work_takes_longer(tiny_llama: Callable[..., Path]) -> None:
    facts = facts_from_folder(tiny_llama(hidden=128, ffn=2048, layers=1))
    seen: list[tuple[int, int]] = []
    latency = profile(
        facts,
        "float32",
        CPU,
        batch=2,
        tokens=64,
        multiple_of=16,
        repeats=3,
        on_progress=lambda done, of: seen.append((done, of)),
    )
    latency.check(facts, "float32", 16)
    assert seen[-1][0] == seen[-1][1] == len(seen)
    assert latency.spread > 0
    # A hundred times the work, and any machine notices.
    assert latency.prefill.of_mlp(2048) > 4 * latency.prefill.of_mlp(16)
    assert latency.prefill.of_mlp(2048) > 2 * latency.decode.of_mlp(2048)
    assert latency.prefill.constant > 0 and latency.decode.constant > 0
