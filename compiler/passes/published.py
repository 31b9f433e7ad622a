# SPDX-License-Identifier: Apache-2.0
"""The local pruning of Týr-the-Pruner as it was published: every level solved on its own.

What is known to be weak about it stays as it is: both Gram matrices of a layer come from one
forward pass through the dense layer, the pruned path's inputs are taken for right, and the score
has a signed first-order term.

Source: arXiv 2503.09657 and its code. One thing is done once that is there done nine times, with
the same result: the Gram matrix is inverted per sublayer, not per level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import dense_layout, free_selection
from prunec.compiler.model.modeling.modeling_prunec import PerLayerDecoderLayer
from prunec.compiler.model.states import HiddenStates
from prunec.compiler.model.surgery import head_rows, slice_layer
from prunec.compiler.passes.least_squares import cholesky
from prunec.compiler.passes.nested import CutLayer

#: Rounds in which a sublayer's units go, of the released code: all heads at once.
HEAD_ROUNDS = 1
NEURON_ROUNDS = 16

Accumulation = Literal["centre", "weighted_mean"]


# --- One sublayer ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class LocalProblem:
    """A linear map's weight and the Gram matrix of its inputs; float64.

    gram: [d_in, d_in], damped; inverse: its inverse; weight: [d_in, d_out]; target: gram @ weight
    Rows of `weight` whose inputs are always zero are zero.
    """

    gram: Tensor
    inverse: Tensor
    weight: Tensor
    target: Tensor


def local_problem(gram: Tensor, weight: Tensor, damping: float) -> LocalProblem:
    """The problem of a linear map [d_in, d_out] from its inputs' Gram matrix; float64."""
    if not torch.isfinite(gram).all():
        raise ModelError("a NaN or an infinity appeared in the activations of the calibration text")
    gram = gram.double()
    diagonal = gram.diagonal()
    weight = torch.where(diagonal[:, None] == 0, 0.0, weight.double())
    mean = diagonal.mean()
    ridge = damping * (mean if mean > 0 else torch.ones_like(mean))
    damped = gram + torch.diag(ridge.expand(len(gram)))
    return LocalProblem(damped, torch.cholesky_inverse(cholesky(damped)), weight, damped @ weight)


def unit_scores(
    weight: Tensor, inverse: Tensor, target: Tensor, units: Tensor, width: int
) -> Tensor:
    """[units]: ½ tr(W_gᵀ ([H⁻¹]_gg)⁻¹ W_g) + ⟨W_g, G_g⟩, low where a unit is to go.

    A unit is `width` neighbouring inputs: 1 for a neuron, where this is the sum over the row of
    W ∘ (W / 2[H⁻¹]_pp + G), and the head's width for a query head.
    """
    inputs = units[:, None] * width + torch.arange(width, device=units.device)  # [units, width]
    rows = weight[inputs]  # [units, width, d_out]
    blocks = inverse[inputs[:, :, None], inputs[:, None, :]]
    solved = rows / blocks if width == 1 else torch.linalg.solve(blocks, rows)
    return (rows * (solved / 2 + target[inputs])).sum(dim=(1, 2))


def solve_level(
    problem: LocalProblem, keep: int, *, width: int, rounds: int
) -> tuple[tuple[int, ...], Tensor]:
    """(units that stay, ascending; their refitted rows [keep * width, d_out]) for one level.

    Units go in `rounds` nearly equal parts, those of the lowest scores first; W and H⁻¹ are
    brought up to date after each, G is not. The rows that stay are then fitted exactly.
    """
    count = len(problem.weight) // width
    alive = torch.arange(count, device=problem.weight.device)
    if keep == 0:
        return (), problem.weight[:0]
    weight, inverse = problem.weight.clone(), problem.inverse.clone()
    for number in range(rounds):
        drop = (count - keep) * (number + 1) // rounds - (count - keep) * number // rounds
        scores = unit_scores(weight, inverse, problem.target, alive, width)
        order = scores.argsort(stable=True)
        gone, alive = alive[order[:drop]], alive[order[drop:]].sort().values
        if len(alive) > keep:  # the last update would feed nothing
            remove(weight, inverse, _inputs(gone, width))
    inputs = _inputs(alive, width)
    factor = cholesky(problem.gram[inputs][:, inputs])
    return tuple(alive.tolist()), torch.cholesky_solve(problem.target[inputs], factor)


def remove(weight: Tensor, inverse: Tensor, gone: Tensor) -> None:
    """Take inputs out of W and H⁻¹, in place: what is left makes up for them as well as it can."""
    columns, d_out = inverse[:, gone], weight.shape[1]
    rows = torch.cat([weight[gone], inverse[gone]], dim=1)
    solved = torch.linalg.solve(inverse[gone][:, gone], rows)
    weight -= columns @ solved[:, :d_out]
    inverse -= columns @ solved[:, d_out:]
    weight[gone] = 0
    inverse[gone] = 0
    inverse[:, gone] = 0


def _inputs(units: Tensor, width: int) -> Tensor:
    return (units[:, None] * width + torch.arange(width, device=units.device)).flatten()


# --- One layer ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Level:
    """A sublayer at one level: the units that stay, and the columns of its last map, refitted.

    weight: [hidden_size, kept inputs], at the dtype of the forward pass
    """

    units: tuple[int, ...]
    weight: Tensor


@dataclass(frozen=True)
class LayerLevels:
    """Both sublayers of a layer at every level of theirs, by the levels' numbers."""

    attention: Mapping[int, Level]
    mlp: Mapping[int, Level]


def cut_layer(
    facts: Facts, tensors: Mapping[str, Tensor], attention: Level | None, mlp: Level | None
) -> CutLayer:
    """A layer at a level of each sublayer, None for no such sublayer.

    `tensors` are those of the dense layer, names relative to it.
    """
    family = facts.family
    selection = free_selection(
        facts, attention.units if attention else (), mlp.units if mlp else ()
    )
    sliced = slice_layer(facts, tensors, selection)
    for level, name in ((attention, family.output), (mlp, family.down)):
        if level and level.units:
            sliced[f"{name}.weight"] = level.weight
    return CutLayer(selection, sliced)


def accumulated(levels: Mapping[int, Level], dense: Tensor, how: Accumulation) -> Tensor:
    """The weight [hidden_size, d_in] that the next sublayers' inputs are computed with.

    `centre`: level 0's. `weighted_mean`: Σ (1 − S_e) W_e / Σ (1 − S_e) over the levels' shares of
    removed units S_e, which is as much as the mean of what the levels put out. `dense` has the
    shape; units that a level lacks are zero in it.
    """
    chosen = [levels[0]] if how == "centre" else list(levels.values())
    total = torch.zeros_like(dense, dtype=torch.float32)
    for level in chosen:
        kept = level.weight.shape[1]
        if kept:
            inputs = head_rows(level.units, kept // len(level.units)).to(total.device)
            total[:, inputs] += kept * level.weight.float()
    kept_in_all = sum(level.weight.shape[1] for level in chosen)
    return (total / max(kept_in_all, 1)).to(dense.dtype)


# --- The walk -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerSizes:
    """Units that stay at every level of a layer's two sublayers, by the levels' numbers."""

    heads: Mapping[int, int]
    neurons: Mapping[int, int]


class LevelMemory(Protocol):
    """Where finished layers are kept, so that a walk that was stopped goes on."""

    def load(self, index: int) -> LayerLevels | None: ...

    def save(self, index: int, levels: LayerLevels) -> None: ...


@torch.no_grad()
def build_levels(
    decoder: Decoder,
    ids: Tensor,
    sizes: Sequence[LayerSizes],
    memory: LevelMemory,
    *,
    damping: float,
    accumulation: Accumulation,
    on_layer: Callable[[int], None] = lambda done: None,
) -> None:
    """Solve every level of every layer, on inputs that the accumulated layers before it give.

    ids: [windows, length] calibration tokens; `memory` gets the result.
    """
    facts, family = decoder.facts, decoder.facts.family
    hidden = decoder.embedded(ids)
    for index, wanted in enumerate(sizes):
        levels = memory.load(index)
        tensors = decoder.layer_tensors(index)
        if levels is None:
            grams = _grams(decoder, _dense(decoder, index, tensors), hidden)
            attention = _levels(
                local_problem(grams[0], tensors[f"{family.output}.weight"].T, damping),
                wanted.heads,
                decoder.dtype,
                width=facts.head_dim,
                rounds=HEAD_ROUNDS,
            )
            mlp = _levels(
                local_problem(grams[1], tensors[f"{family.down}.weight"].T, damping),
                wanted.neurons,
                decoder.dtype,
                width=1,
                rounds=NEURON_ROUNDS,
            )
            levels = LayerLevels(attention, mlp)
            memory.save(index, levels)
        _advance(decoder, index, tensors, levels, hidden, accumulation)
        on_layer(index + 1)


@torch.no_grad()
def solve_widths(
    decoder: Decoder,
    ids: Tensor,
    supernet: Callable[[int], LayerLevels],
    widths: Mapping[int, int],
    *,
    damping: float,
    accumulation: Accumulation,
) -> Iterator[tuple[int, Level]]:
    """The MLPs of some layers at widths of no level, as `build_levels` would have solved them.

    supernet: what that has made of a layer. Yields (layer, level) as the walk comes by.
    """
    family = decoder.facts.family
    hidden = decoder.embedded(ids)
    for index in range(max(widths, default=-1) + 1):
        tensors = decoder.layer_tensors(index)
        if index in widths:
            _, gram = _grams(decoder, _dense(decoder, index, tensors), hidden)
            problem = local_problem(gram, tensors[f"{family.down}.weight"].T, damping)
            sizes = {0: widths[index]}
            level = _levels(problem, sizes, decoder.dtype, width=1, rounds=NEURON_ROUNDS)[0]
            yield index, level
        _advance(decoder, index, tensors, supernet(index), hidden, accumulation)


def _levels(
    problem: LocalProblem, sizes: Mapping[int, int], dtype: torch.dtype, *, width: int, rounds: int
) -> dict[int, Level]:
    levels = {}
    for number, keep in sizes.items():
        units, rows = solve_level(problem, keep, width=width, rounds=rounds)
        levels[number] = Level(units, rows.T.to(dtype).contiguous())
    return levels


def _grams(
    decoder: Decoder, layer: PerLayerDecoderLayer, hidden: HiddenStates
) -> tuple[Tensor, Tensor]:
    """Gram matrices of the inputs of a dense layer's output and down projections.

    Float32 products, float64 sums; the hidden states stay where they are.
    """
    family = decoder.facts.family
    grams = []
    hooks = []
    for name in (family.output, family.down):
        projection = layer.get_submodule(name)
        size = projection.in_features
        gram = torch.zeros(size, size, dtype=torch.float64, device=decoder.device)
        grams.append(gram)

        def add(_: object, args: tuple[Tensor], gram: Tensor = gram) -> None:
            seen = args[0].flatten(0, 1).float()
            gram += seen.T @ seen

        hooks.append(projection.register_forward_pre_hook(add))
    for batch in decoder.batches(*hidden.shape[:2]):
        decoder.feed(layer, decoder.attend(layer, hidden[batch]))
    for hook in hooks:
        hook.remove()
    return grams[0], grams[1]


def _advance(
    decoder: Decoder,
    index: int,
    tensors: Mapping[str, Tensor],
    levels: LayerLevels,
    hidden: HiddenStates,
    accumulation: Accumulation,
) -> None:
    family = decoder.facts.family
    names = ((levels.attention, f"{family.output}.weight"), (levels.mlp, f"{family.down}.weight"))
    mixed = {name: accumulated(found, tensors[name], accumulation) for found, name in names}
    layer = _dense(decoder, index, {**tensors, **mixed})
    for batch in decoder.batches(*hidden.shape[:2]):
        hidden[batch] = decoder.feed(layer, decoder.attend(layer, hidden[batch]))


def _dense(decoder: Decoder, index: int, tensors: Mapping[str, Tensor]) -> PerLayerDecoderLayer:
    return decoder.layer(index, dense_layout(decoder.facts)[index], tensors)
