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
from prunec.compiler.estimates import walk_forwards
from prunec.compiler.layer_store import StoredLayers, load_nested, save_cut
from prunec.compiler.model.checkpoint import Checkpoint
from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.layout import LayerSpec, Layout, dense_layout
from prunec.compiler.passes.magnitude import prune_by_magnitude
from prunec.compiler.passes.sequential import Solver, prune_sequentially
from prunec.compiler.plan import Plan, Step
from prunec.compiler.recipe import Recipe
from prunec.compiler.search import evolutionary
from prunec.compiler.search.budget import Candidate
from prunec.compiler.search.divergence import TeacherDistributions
from prunec.compiler.search.evaluator import Evaluator
from prunec.compiler.search.space import Space
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
        return self.entry(step, role).found()

    def ids(self, step: Step, role: str = "tokens") -> Tensor:
        """[windows, length] token ids that a step reads."""
        return self.entry(step, role).require_tensors("ids")[0]["ids"]

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
        StoredLayers(entry, context.decoder.device, with_nested),
        waypoints=waypoints,
        on_layer=lambda done: progress(done, len(layout), "layers"),
    )
    return {
        "token_forwards": walk_forwards(step.params["dense_target"]) * ids.numel(),
        "layout": _plain(layout),
    }


def _layout(context: Context, step: Step, role: str) -> Layout:
    """A layout from a step's parameters, or from the search that plays the role in its inputs."""
    plain = context.found(step, role)["layout"] if role in step.inputs else step.params[role]
    head_dim = context.subject.facts.head_dim
    return tuple(LayerSpec(queries, kv, head_dim, ffn) for queries, kv, ffn in plain)


def _plain(layout: Layout) -> list[list[int]]:
    return [[spec.query_heads, spec.kv_heads, spec.ffn] for spec in layout]


# --- search -------------------------------------------------------------------------------------


def run_search(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    decoder, ids, params = context.decoder, context.ids(step), step.params
    device = decoder.device
    supernet_entry = context.entry(step, "supernet")
    supernet = [load_nested(supernet_entry, i, device) for i in range(decoder.facts.layers)]
    teacher, _ = context.entry(step, "teacher").require_tensors("teacher")
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
