# SPDX-License-Identifier: Apache-2.0
"""How each kind of step of a plan is carried out: from the store, through a pass, to the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from prunec.compiler import planner
from prunec.compiler.calibration import sources
from prunec.compiler.calibration.windows import draw_windows
from prunec.compiler.diagnostics import BuildError
from prunec.compiler.estimates import WALK_FORWARDS
from prunec.compiler.model.checkpoint import Checkpoint
from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.layout import LayerSelection, LayerSpec, Layout, dense_layout
from prunec.compiler.passes.eliminate import HeadPath
from prunec.compiler.passes.least_squares import NestedSolution
from prunec.compiler.passes.magnitude import prune_by_magnitude
from prunec.compiler.passes.nested import CutLayer, NestedAttention, NestedLayer, NestedMLP
from prunec.compiler.passes.sequential import Solver, prune_sequentially
from prunec.compiler.plan import Plan, Step
from prunec.compiler.recipe import Recipe
from prunec.compiler.search import evolutionary
from prunec.compiler.search.divergence import TeacherDistributions
from prunec.compiler.search.evaluator import Evaluator
from prunec.compiler.search.space import Candidate, Space
from prunec.compiler.store import Entry, Store

#: Called with (done, of, note) while a step runs.
Progress = Callable[[int, int, str], None]

Summary = dict[str, Any]


@dataclass(frozen=True)
class Context:
    """What the steps of one build share."""

    recipe: Recipe
    recipe_text: str
    base: Path  # the recipe's folder
    folder: Path  # the dense model's checkpoint
    output: Path
    subject: planner.Subject
    plan: Plan
    store: Store

    def entry(self, step: Step, role: str) -> Entry:
        """What the step that plays a role among a step's inputs has made."""
        return self.store.entry(self.plan.step(step.inputs[role]).fingerprint)

    def found(self, step: Step, role: str) -> Summary:
        """The summary of the step that plays a role among a step's inputs; steps run in order."""
        return finished(self.entry(step, role))

    def ids(self, step: Step, role: str = "tokens") -> Tensor:
        """[windows, length] token ids that a step reads."""
        return require_tensors(self.entry(step, role), "ids")[0]["ids"]

    @cached_property
    def decoder(self) -> Decoder:
        dtype = getattr(torch, self.recipe.model.dtype)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return Decoder(Checkpoint(self.folder, self.subject.facts), dtype, device)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        try:
            return AutoTokenizer.from_pretrained(str(self.folder), local_files_only=True)
        except (OSError, ValueError) as error:
            raise BuildError(f"the tokenizer in {self.folder} does not load: {error}") from None


def finished(entry: Entry) -> Summary:
    """What a finished step found; BuildError if that is gone."""
    record = entry.record()
    if record is None:
        raise BuildError(f"{entry.folder} is not finished", hint="run the same command again")
    found: Summary = record["found"]
    return found


def require_tensors(entry: Entry, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Saved tensors of a finished step; BuildError if they are gone."""
    found = entry.load_tensors(name)
    if found is None:
        raise BuildError(
            f"{entry.folder} has lost {name}, which a later step reads",
            hint="run the same command again with --fresh",
        )
    return found


# --- tokens, teacher ----------------------------------------------------------------------------


def run_tokens(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    params, tokenizer = step.params, context.tokenizer
    end = tokenizer.eos_token_id
    if end is None:
        raise BuildError(f"the tokenizer in {context.folder} names no end-of-text token")
    wanted = params["total"] * params["length"]
    seen = 0

    def encode(text: str) -> list[int]:
        nonlocal seen
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        seen += len(ids)
        progress(min(seen, wanted), wanted, "tokens read")
        return ids

    ids = draw_windows(
        sources.documents(params["source"], params["seed"], context.base),
        encode,
        end,
        windows=params["windows"],
        length=params["length"],
        seed=params["seed"],
        skip=params["skip"],
        total=params["total"],
    )
    entry.save_tensors("ids", {"ids": ids})
    return {"tokens": ids.numel()}


@torch.no_grad()
def run_teacher(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    decoder, ids = context.decoder, context.ids(step)
    hidden = decoder.embed(ids)
    spec = dense_layout(decoder.facts)[0]
    batches = list(decoder.batches(*ids.shape))
    for index in range(decoder.facts.layers):
        layer = decoder.layer(index, spec, decoder.layer_tensors(index))
        for batch in batches:
            hidden[batch] = decoder.feed(layer, decoder.attend(layer, hidden[batch]))
        progress(index + 1, decoder.facts.layers, "layers")
    parts = [
        TeacherDistributions.from_logits(decoder.logits(hidden[batch]), step.params["top_k"])
        for batch in batches
    ]
    entry.save_tensors(
        "teacher",
        {
            "ids": torch.cat([part.ids for part in parts]),
            "log_probs": torch.cat([part.log_probs for part in parts]),
            "log_tail": torch.cat([part.log_tail for part in parts]),
        },
    )
    return {"token_forwards": ids.numel()}


# --- walks: supernet and resolve ----------------------------------------------------------------


@dataclass(frozen=True)
class _StoredLayers:
    """The memory of a walk: each layer's cut, and for a supernet also its every size."""

    entry: Entry
    with_nested: bool

    def load(self, index: int) -> CutLayer | None:
        if self.with_nested and self.entry.load_tensors(f"nested-{index}") is None:
            return None
        return load_cut(self.entry, index)

    def save(self, index: int, nested: NestedLayer, cut: CutLayer) -> None:
        if self.with_nested:
            save_nested(self.entry, index, nested)
        save_cut(self.entry, index, cut)


@torch.no_grad()
def run_supernet(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    layout = _layout(context, step, "centre")
    waypoints: list[tuple[int, int]] = []
    if step.params["tied"]:
        budget = planner.budget_of(context.recipe, context.subject.facts)
        waypoints = budget.tied_path((layout[0].query_heads, layout[0].kv_heads))
    return _walk(context, step, entry, progress, layout, waypoints, with_nested=True)


@torch.no_grad()
def run_resolve(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    layout = _layout(context, step, "layout")
    if step.params["solver"] == "least_squares":
        summary = _walk(context, step, entry, progress, layout, [], with_nested=False)
    else:
        for index, spec in enumerate(layout):
            tensors = context.decoder.layer_tensors(index)
            save_cut(entry, index, prune_by_magnitude(context.subject.facts, tensors, spec))
            progress(index + 1, len(layout), "layers")
        summary = {"token_forwards": 0}
    return summary | {"layout": _plain(layout)}


def _walk(
    context: Context,
    step: Step,
    entry: Entry,
    progress: Progress,
    layout: Layout,
    waypoints: list[tuple[int, int]],
    *,
    with_nested: bool,
) -> Summary:
    ids = context.ids(step)
    prune_sequentially(
        context.decoder,
        ids,
        layout,
        Solver(step.params["damping"], step.params["dense_target"]),
        _StoredLayers(entry, with_nested),
        waypoints=waypoints,
        on_layer=lambda done: progress(done, len(layout), "layers"),
    )
    return {"token_forwards": WALK_FORWARDS * ids.numel(), "layout": _plain(layout)}


def _layout(context: Context, step: Step, role: str) -> Layout:
    """A layout from a step's parameters, or from the search that plays the role in its inputs."""
    plain = context.found(step, role)["layout"] if role in step.inputs else step.params[role]
    head_dim = context.subject.facts.head_dim
    return tuple(LayerSpec(queries, kv, head_dim, ffn) for queries, kv, ffn in plain)


def _plain(layout: Layout) -> list[list[int]]:
    return [[spec.query_heads, spec.kv_heads, spec.ffn] for spec in layout]


def save_cut(entry: Entry, index: int, cut: CutLayer) -> None:
    selection = cut.selection
    units = {
        "query_heads": list(selection.query_heads),
        "kv_heads": list(selection.kv_heads),
        "neurons": list(selection.neurons),
    }
    entry.save_tensors(f"layer-{index}", cut.tensors, units)


def load_cut(entry: Entry, index: int) -> CutLayer | None:
    found = entry.load_tensors(f"layer-{index}")
    if found is None:
        return None
    tensors, units = found
    selection = LayerSelection(**{name: tuple(indices) for name, indices in units.items()})
    return CutLayer(selection, tensors)


def save_nested(entry: Entry, index: int, nested: NestedLayer) -> None:
    """Float32 on disk: levels are only compared with each other; the winner is solved anew."""
    tensors = {}
    for name, solution in (
        ("attention", nested.attention.solution),
        ("mlp", nested.mlp.solution),
    ):
        tensors[f"{name}.order"] = solution.order
        tensors[f"{name}.factor"] = solution.factor.float()
        tensors[f"{name}.projected"] = solution.projected.float()
    states = [[list(queries), list(kv)] for queries, kv in nested.attention.path.states]
    entry.save_tensors(
        f"nested-{index}", tensors, {"states": states, "head_dim": nested.attention.head_dim}
    )


def load_nested(entry: Entry, index: int, device: torch.device) -> NestedLayer:
    tensors, facts = require_tensors(entry, f"nested-{index}")

    def solution(name: str) -> NestedSolution:
        parts = (tensors[f"{name}.{part}"].to(device) for part in ("order", "factor", "projected"))
        return NestedSolution(*parts)

    states = tuple((tuple(queries), tuple(kv)) for queries, kv in facts["states"])
    attention = solution("attention")
    path = HeadPath(states, attention.order)
    return NestedLayer(
        NestedAttention(facts["head_dim"], path, attention), NestedMLP(solution("mlp"))
    )


# --- search -------------------------------------------------------------------------------------


def run_search(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    decoder, ids, params = context.decoder, context.ids(step), step.params
    device = decoder.device
    supernet_entry = context.entry(step, "supernet")
    supernet = [load_nested(supernet_entry, i, device) for i in range(decoder.facts.layers)]
    teacher, _ = require_tensors(context.entry(step, "teacher"), "teacher")
    distributions = TeacherDistributions(**{k: tensor.to(device) for k, tensor in teacher.items()})

    budget = planner.budget_of(context.recipe, context.subject.facts)
    paths = tuple(
        tuple(shape for shape in nested.attention.shapes if budget.attention_is_legal(*shape))
        for nested in supernet
    )
    supernet_step = context.plan.step(step.inputs["supernet"])
    start = Candidate.of(_layout(context, supernet_step, "centre"))
    settings = evolutionary.Settings(
        offspring=params["offspring"],
        step=params["step"],
        windows=len(ids),
        length=ids.shape[1],
        token_forwards=params["token_forwards"],
        seed=tuple(params["seed"]),
    )
    saved = entry.load_json("state")

    def remember(state: evolutionary.State) -> None:
        entry.save_json("state", state.as_dict())
        best = f"token-forwards, divergence {state.divergence:.4f}"
        progress(state.token_forwards, settings.token_forwards, best)

    state = evolutionary.evolve(
        Space(budget, paths),
        Evaluator(decoder, supernet, ids, distributions),
        start,
        settings,
        resumed=evolutionary.State.from_dict(saved) if saved else None,
        on_generation=remember,
    )
    return {
        "token_forwards": state.token_forwards,
        "layout": _plain(budget.layout(state.parent)),
        "divergence": state.divergence,
        "history": [vars(line) for line in state.history],
    }


RUNNERS: Mapping[str, Callable[[Context, Step, Entry, Progress], Summary]] = {
    "tokens": run_tokens,
    "teacher": run_teacher,
    "supernet": run_supernet,
    "search": run_search,
    "resolve": run_resolve,
}
