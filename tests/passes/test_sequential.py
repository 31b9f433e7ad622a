# SPDX-License-Identifier: Apache-2.0
"""The walk through a model is held against whole-model forward passes of transformers.

The reference prunes by writing zeros and refitted columns into a full model, listens to what
reaches the last map of each sublayer, and refits with numpy in float64.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from prunec.compiler.model.checkpoint import Checkpoint
from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.folder import facts_from_folder
from prunec.compiler.model.layout import LayerSpec, Layout, dense_layout, norm_shapes
from prunec.compiler.model.layout import projection_shapes as shapes_of
from prunec.compiler.model.placement import ROOMY, Placement
from prunec.compiler.passes import least_squares
from prunec.compiler.passes.nested import CutLayer, NestedLayer
from prunec.compiler.passes.sequential import Solver, prune_sequentially

DIM, FFN = 8, 24
SMALL = {"layers": 3, "hidden": 32, "head_dim": DIM, "ffn": FFN}


@pytest.fixture(autouse=True, params=[int(os.environ["PRUNEC_TEST_SEED"])], ids="seed {}".format)
def _fresh_numbers(request: pytest.FixtureRequest) -> None:
    torch.manual_seed(request.param)


class Memory:
    """Keeps all layers; gives back those before `known` of an earlier walk."""

    def __init__(
        self, known: dict[int, CutLayer] | None = None, *, with_nested: bool = True
    ) -> None:
        self.known = known or {}
        self.with_nested = with_nested
        self.cuts: dict[int, CutLayer] = {}
        self.nested: dict[int, NestedLayer] = {}

    def load(self, index: int) -> CutLayer | None:
        return self.known.get(index)

    def save(self, index: int, nested: NestedLayer, cut: CutLayer) -> None:
        self.nested[index], self.cuts[index] = nested, cut


def _decoder(
    folder: Path, dtype: torch.dtype = torch.float32, placement: Placement = ROOMY
) -> Decoder:
    checkpoint = Checkpoint(folder, facts_from_folder(folder))
    return Decoder(checkpoint, dtype, torch.device("cpu"), placement)


@torch.no_grad()
def _walk(decoder: Decoder, ids: Tensor, layout: Layout, solver: Solver, **more: Any) -> Memory:
    memory = Memory()
    prune_sequentially(decoder, ids, layout, solver, memory, **more)
    return memory


def _layout(*shapes: tuple[int, int, int]) -> Layout:
    return tuple(LayerSpec(queries, kv, DIM, ffn) for queries, kv, ffn in shapes)


# --- the reference --------------------------------------------------------------------------------


@torch.no_grad()
def _inputs(model: LlamaForCausalLM, projection: nn.Linear, ids: Tensor) -> np.ndarray:
    """[tokens, d_in] float64: what reaches a projection when the whole model runs."""
    seen: list[Tensor] = []
    hook = projection.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(ids)
    hook.remove()
    return seen[0].flatten(0, 1).double().numpy()


@torch.no_grad()
def _behind(model: LlamaForCausalLM, index: int, sublayer: str, ids: Tensor) -> np.ndarray:
    """[tokens, hidden] float64: the stream behind a layer's attention or MLP."""
    seen: list[Tensor] = []
    layer = model.model.layers[index]
    if sublayer == "self_attn":
        norm = layer.post_attention_layernorm
        hook = norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    else:
        hook = layer.register_forward_hook(lambda _, args, out: seen.append(out))
    model(ids)
    hook.remove()
    return seen[0].flatten(0, 1).double().numpy()


def _energy(inputs: np.ndarray) -> float:
    """Of inputs [tokens, d_in] the mean channel's, none counted above ten times the median."""
    energy = np.sort((inputs**2).sum(axis=0))
    median = energy[energy > 0][(int((energy > 0).sum()) - 1) // 2]
    return float(np.minimum(energy, 10 * median).mean())


def _refit(
    pruned: np.ndarray, missing: np.ndarray, weight: np.ndarray, kept: list[int], solver: Solver
) -> np.ndarray:
    """[kept, d_out]: damped least squares on the columns that stay; weight: [d_in, d_out]."""
    target = pruned @ weight + solver.dense_target * missing
    pull = np.sqrt(solver.damping * _energy(pruned))
    design = np.vstack([pruned[:, kept], pull * np.eye(len(kept))])
    fitted: np.ndarray = np.linalg.lstsq(
        design, np.vstack([target, pull * weight[kept]]), rcond=None
    )[0]
    return fitted


@torch.no_grad()
def _install(projection: nn.Linear, kept: list[int], weight: np.ndarray) -> None:
    projection.weight.zero_()
    if kept:
        projection.weight[:, kept] = torch.from_numpy(weight.T).float()
    elif projection.bias is not None:
        projection.bias.zero_()


def _close(actual: Tensor, expected: np.ndarray) -> bool:
    scale = np.abs(expected).max()
    return bool(np.abs(actual.double().numpy().T - expected).max() <= 1e-3 * scale)


# --- tests ----------------------------------------------------------------------------------------

LAYOUTS = {
    "gqa": ({}, _layout((2, 2, 13), (2, 1, 9), (4, 2, 5))),
    "absent sublayers": ({}, _layout((2, 1, 12), (0, 0, 11), (2, 2, 0))),
    "biased": ({"biased": True}, _layout((2, 2, 12), (0, 0, 20), (2, 1, 0))),
    "mha": ({"kv_heads": 4}, _layout((3, 3, 12), (1, 1, 12), (2, 2, 12))),
    "mqa": ({"kv_heads": 1}, _layout((3, 1, 12), (1, 1, 12), (2, 1, 12))),
    "fewer tokens than inputs": ({"ids": (1, 11)}, _layout((2, 2, 13), (2, 1, 9), (4, 2, 5))),
}


@pytest.mark.parametrize("dense_target", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("options", "layout"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_layer_is_fitted_to_what_the_pruned_layers_before_it_send(
    tiny_llama: Callable[..., Path],
    options: dict[str, Any],
    layout: Layout,
    dense_target: float,
) -> None:
    options = dict(options)
    windows = options.pop("ids", (6, 20))
    folder = tiny_llama(**SMALL, **options)
    ids, solver = torch.randint(0, 300, windows), Solver(0.01, dense_target)
    memory = _walk(_decoder(folder), ids, layout, solver)

    dense = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    pruned = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    own_attention_matters = False
    for index, spec in enumerate(layout):
        cut, there, here = memory.cuts[index], dense.model.layers[index], pruned.model.layers[index]
        assert cut.selection.spec(DIM) == spec
        assert {name: tuple(tensor.shape) for name, tensor in cut.tensors.items()} == (
            shapes_of(facts_from_folder(folder), spec)
            | norm_shapes(facts_from_folder(folder), spec)
        )
        columns = [h * DIM + i for h in cut.selection.query_heads for i in range(DIM)]
        for name, last, kept in (
            ("self_attn.o_proj.weight", lambda layer: layer.self_attn.o_proj, columns),
            ("mlp.down_proj.weight", lambda layer: layer.mlp.down_proj, cut.selection.neurons),
        ):
            weight = last(there).weight.detach().double().numpy().T
            sublayer = name.partition(".")[0]
            wanted = _behind(dense, index, sublayer, ids)

            def refit() -> np.ndarray:
                # The sublayer itself is still dense here.
                missing = wanted - _behind(pruned, index, sublayer, ids)  # noqa: B023
                inputs = _inputs(pruned, last(here), ids)  # noqa: B023
                return _refit(inputs, missing, weight, list(kept), solver)  # noqa: B023

            expected = refit()
            if kept:
                assert _close(cut.tensors[name], expected), (index, name)
            if name.startswith("mlp") and kept and not own_attention_matters:
                # As if down_proj had been fitted before its own block's attention was pruned.
                saved = here.self_attn.o_proj.weight.detach().clone()
                here.self_attn.o_proj.weight.data = there.self_attn.o_proj.weight.detach().clone()
                stale = refit()
                here.self_attn.o_proj.weight.data = saved
                own_attention_matters = not _close(cut.tensors[name], stale)
            _install(last(here), list(kept), expected)
    assert own_attention_matters, "the test could not have told"


@pytest.mark.parametrize("dense_target", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_walk_that_removes_nothing_changes_nothing(
    tiny_llama: Callable[..., Path], dtype: torch.dtype, dense_target: float
) -> None:
    decoder = _decoder(tiny_llama(**SMALL, biased=True, dtype="bfloat16"), dtype)
    ids = torch.randint(0, 300, (3, 10))  # fewer tokens than inputs
    memory = _walk(decoder, ids, dense_layout(decoder.facts), Solver(0.01, dense_target))
    for index in range(3):
        tensors = decoder.layer_tensors(index)
        assert memory.cuts[index].tensors.keys() == tensors.keys()
        for name, tensor in memory.cuts[index].tensors.items():
            assert tensor.dtype == dtype
            torch.testing.assert_close(tensor, tensors[name], rtol=2e-3, atol=1e-5, msg=name)


def test_every_size_of_a_layer_is_the_one_that_a_walk_to_it_would_give(
    tiny_llama: Callable[..., Path],
) -> None:
    decoder = _decoder(tiny_llama(**SMALL))
    ids, solver = torch.randint(0, 300, (4, 16)), Solver(0.01, 0.5)
    waypoints = [(2, 2), (1, 1)]
    centre = _layout((4, 2, 24), (2, 2, 12), (4, 2, 24))
    supernet = _walk(decoder, ids, centre, solver, waypoints=waypoints)
    for nested in supernet.nested.values():
        shapes = nested.attention.shapes
        assert shapes[0] == (4, 2) and shapes[-1] == (0, 0)
        assert [shape for shape in shapes if shape in waypoints] == waypoints
    tensors = decoder.layer_tensors(0)
    for shape in supernet.nested[0].attention.shapes:
        # MLP at full width: its statistics depend on the attention, its weights then do not.
        spec = LayerSpec(*shape, DIM, 0)
        direct = _walk(decoder, ids, (spec, *centre[1:]), solver, waypoints=waypoints).cuts[0]
        cut = supernet.nested[0].cut(decoder.facts, tensors, spec)
        assert cut.selection == direct.selection
        for name, tensor in direct.tensors.items():
            torch.testing.assert_close(cut.tensors[name], tensor, rtol=0, atol=0)
    for width in range(0, FFN + 1, 5):
        cut_mlp = supernet.nested[0].mlp.cut(decoder.facts, tensors, width)
        assert len(cut_mlp.selection.neurons) == width
        assert cut_mlp.selection.neurons == tuple(sorted(cut_mlp.selection.neurons))


@pytest.mark.parametrize("stopped_after", [0, 1, 2, 3])
def test_a_walk_that_was_stopped_goes_on_to_the_same_bits(
    tiny_llama: Callable[..., Path], stopped_after: int
) -> None:
    several_batches = Placement(batch_tokens=50)
    folder = tiny_llama(**SMALL, dtype="bfloat16")
    decoder = _decoder(folder, torch.bfloat16, several_batches)
    ids, solver = torch.randint(0, 300, (7, 16)), Solver(0.01, 0.5)
    layout = _layout((2, 2, 13), (0, 0, 9), (2, 1, 7))
    whole = _walk(decoder, ids, layout, solver)

    memory = Memory({i: whole.cuts[i] for i in range(stopped_after)})
    done: list[int] = []
    with torch.no_grad():
        prune_sequentially(decoder, ids, layout, solver, memory, on_layer=done.append)

    assert done == [1, 2, 3]
    assert sorted(memory.cuts) == list(range(stopped_after, 3))
    for index, cut in memory.cuts.items():
        assert cut.selection == whole.cuts[index].selection
        assert cut.tensors.keys() == whole.cuts[index].tensors.keys()
        for name, tensor in cut.tensors.items():
            assert torch.equal(tensor, whole.cuts[index].tensors[name]), name


@pytest.mark.parametrize(
    "options", [{}, {"tied": True}, {"kv_heads": 4}, {"biased": True}], ids=str
)
def test_what_lies_in_files_is_walked_to_the_same_bits(
    tiny_llama: Callable[..., Path],
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(least_squares, "_BLOCK", 10)  # matrices come in several blocks
    folder = tiny_llama(**SMALL, **options, dtype="bfloat16")
    ids, solver = torch.randint(0, 300, (7, 16)), Solver(0.01, 0.5)
    layout = _layout((4, 4 if "kv_heads" in options else 2, 13), (0, 0, 9), (0, 0, 0))
    in_memory = Placement(batch_tokens=50)
    in_files = replace(
        in_memory,
        vocabulary_stays=False,
        states_in_file=True,
        matrices_in_file=True,
        scratch=tmp_path,
    )
    walked = [
        _walk(_decoder(folder, torch.bfloat16, placement), ids, layout, solver)
        for placement in (in_memory, in_files)
    ]
    for index, cut in walked[0].cuts.items():
        assert cut.selection == walked[1].cuts[index].selection
        for name, tensor in cut.tensors.items():
            assert torch.equal(tensor, walked[1].cuts[index].tensors[name]), name
    assert not list(tmp_path.iterdir())


def test_solving_for_one_size_gives_what_solving_for_all_gives_at_it(
    tiny_llama: Callable[..., Path],
) -> None:
    decoder = _decoder(tiny_llama(**SMALL))
    ids, solver = torch.randint(0, 300, (8, 64)), Solver(0.01, 0.5)
    layout = _layout((2, 2, 13), (2, 1, 9), (0, 0, 24))
    every, one = Memory(), Memory(with_nested=False)
    with torch.no_grad():
        for memory in (every, one):
            prune_sequentially(decoder, ids, layout, solver, memory)
    for index, cut in every.cuts.items():
        assert cut.selection == one.cuts[index].selection
        for name, tensor in cut.tensors.items():
            torch.testing.assert_close(one.cuts[index].tensors[name], tensor, rtol=1e-4, atol=1e-5)
    assert one.nested[1].mlp.solution.factor.shape[0] == 9
