# SPDX-License-Identifier: Apache-2.0
"""The steps of Týr as published: its supernets, its searches, and the layers that they end with."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prunec.compiler.layer_store import save_cut
from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.layout import free_selection, plain_layout
from prunec.compiler.passes.published import (
    LayerLevels,
    LayerSizes,
    Level,
    build_levels,
    cut_layer,
    solve_widths,
)
from prunec.compiler.plan import Step
from prunec.compiler.search import grid, published
from prunec.compiler.search.published_scorer import PublishedScorer
from prunec.compiler.steps.context import Context, Progress, Summary
from prunec.compiler.steps.teacher import stored_teacher
from prunec.compiler.store import Entry


@dataclass(frozen=True)
class StoredLevels:
    """The memory of a walk, on disk."""

    entry: Entry
    device: torch.device

    def load(self, index: int) -> LayerLevels | None:
        found = self.entry.load_tensors(f"levels-{index}")
        if found is None:
            return None
        tensors, units = found
        sublayers: dict[str, dict[int, Level]] = {"attention": {}, "mlp": {}}
        for name, kept in units.items():  # in the order in which they were solved
            sublayer, _, number = name.partition(".")
            level = Level(tuple(kept), tensors[name].to(self.device))
            sublayers[sublayer][int(number)] = level
        return LayerLevels(**sublayers)

    def save(self, index: int, levels: LayerLevels) -> None:
        named = {
            f"{sublayer}.{number}": level
            for sublayer, found in (("attention", levels.attention), ("mlp", levels.mlp))
            for number, level in found.items()
        }
        self.entry.save_tensors(
            f"levels-{index}",
            {name: level.weight for name, level in named.items()},
            {name: list(level.units) for name, level in named.items()},
        )

    def require(self, index: int) -> LayerLevels:
        """`load` of what a finished supernet has saved. LostResultError if it is gone."""
        self.entry.require_tensors(f"levels-{index}")
        found = self.load(index)
        assert found is not None
        return found


def run_published_supernet(
    context: Context, step: Step, entry: Entry, progress: Progress
) -> Summary:
    decoder, facts, params = context.decoder, context.subject.facts, step.params
    of_search = context.found(step, "centre")["sizes"] if "centre" in step.inputs else None
    centre = grid.Sizes.from_dict(of_search or params["centre"])
    heads, neurons = params["step"]
    sizes = [
        LayerSizes(
            grid.level_sizes(kept_heads, heads, facts.query_heads),
            grid.level_sizes(kept_neurons, neurons, facts.ffn),
        )
        for kept_heads, kept_neurons in zip(centre.heads, centre.neurons, strict=True)
    ]
    ids = context.ids(step)
    build_levels(
        decoder,
        ids,
        sizes,
        StoredLevels(entry, decoder.device),
        damping=params["damping"],
        accumulation=params["accumulation"],
        on_layer=lambda done: progress(done, facts.layers, "layers"),
    )
    return {"token_forwards": 2 * ids.numel(), "centre": centre.as_dict()}


def run_published_search(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    decoder, ids, params = context.decoder, context.ids(step), step.params
    supernet = _supernet(context, step)
    layers = [supernet.require(index) for index in range(decoder.facts.layers)]
    scorer = PublishedScorer(decoder, layers, ids, stored_teacher(context, step)[:])
    settings = published.Settings(
        offspring=params["offspring"],
        generations=params["generations"],
        windows=len(ids),
        length=ids.shape[1],
        token_forwards=params["token_forwards"],
        seed=tuple(params["seed"]),
    )
    saved = entry.load_json("state")

    def remember(state: published.State) -> None:
        entry.save_json("state", state.as_dict())
        best = f"token-forwards, divergence {state.divergence:.4f}"
        progress(state.token_forwards, settings.token_forwards, best)

    state = published.evolve(
        scorer.grid,
        scorer,
        settings,
        resumed=published.State.from_dict(saved) if saved else None,
        on_generation=remember,
    )
    kept = [sizes[number] for sizes, number in zip(scorer.grid, state.parent, strict=True)]
    return {
        "token_forwards": state.token_forwards,
        "levels": list(state.parent),
        "sizes": grid.Sizes(tuple(kept[: len(layers)]), tuple(kept[len(layers) :])).as_dict(),
        "divergence": state.divergence,
        "history": [vars(line) for line in state.history],
    }


def run_layers(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    """Cut the winner's layers. MLPs that take what KV heads held are solved at their new width."""
    decoder, facts, params = context.decoder, context.subject.facts, step.params
    supernet = _supernet(context, step)
    levels = context.found(step, "search")["levels"]
    chosen: list[tuple[Level, Level]] = []
    for index in range(facts.layers):
        found = supernet.require(index)
        chosen.append((found.attention[levels[index]], found.mlp[levels[facts.layers + index]]))
    layout = tuple(
        free_selection(facts, attention.units, mlp.units).spec(facts.head_dim)
        for attention, mlp in chosen
    )
    wanted = grid.topped_up(facts, layout, params["sparsity"], params["multiple_of"])
    wider = {i: new.ffn for i, new in enumerate(wanted) if new.ffn != layout[i].ffn}
    ids = context.ids(step)
    solved = solve_widths(
        decoder,
        ids,
        supernet.require,
        wider,
        damping=params["damping"],
        accumulation=params["accumulation"],
    )
    for index, level in solved:
        chosen[index] = chosen[index][0], level
        progress(index + 1, facts.layers, "layers")
    for index, (attention, mlp) in enumerate(chosen):
        save_cut(entry, index, cut_layer(facts, decoder.layer_tensors(index), attention, mlp))
    missed = grid.parameters_missed(facts, wanted, params["sparsity"])
    if abs(missed) > grid.neuron_parameters(facts) * params["multiple_of"]:
        raise ModelError(
            f"the MLPs have no room for the {missed:,} parameters of KV heads that nothing reads",
            hint="lower target.sparsity",
        )
    return {
        "token_forwards": 2 * ids.numel() if wider else 0,
        "layout": plain_layout(wanted),
    }


def _supernet(context: Context, step: Step) -> StoredLevels:
    return StoredLevels(context.entry(step, "supernet"), context.decoder.device)
