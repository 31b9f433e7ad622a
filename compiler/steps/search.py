# SPDX-License-Identifier: Apache-2.0
"""A search over the layouts that a supernet can be cut to."""

from __future__ import annotations

from prunec.compiler.layer_store import load_nested
from prunec.compiler.plan import Step
from prunec.compiler.search import evolutionary
from prunec.compiler.search.budget import Candidate
from prunec.compiler.search.divergence import TeacherDistributions
from prunec.compiler.search.evaluator import Evaluator
from prunec.compiler.search.space import Space
from prunec.compiler.steps.context import Context, Progress, Summary, layout_of, plain_layout
from prunec.compiler.store import Entry
from prunec.compiler.target import budget_of


def run_search(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    decoder, ids, params = context.decoder, context.ids(step), step.params
    device = decoder.device
    supernet_entry = context.entry(step, "supernet")
    supernet = [load_nested(supernet_entry, i, device) for i in range(decoder.facts.layers)]
    teacher, _ = context.entry(step, "teacher").require_tensors("teacher")
    distributions = TeacherDistributions(**{k: tensor.to(device) for k, tensor in teacher.items()})

    budget = budget_of(context.recipe, context.subject.facts)
    paths = tuple(
        tuple(shape for shape in nested.attention.shapes if budget.attention_is_legal(*shape))
        for nested in supernet
    )
    supernet_step = context.plan.step(step.inputs["supernet"])
    start = Candidate.of(layout_of(context, supernet_step, "centre"))
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
        "layout": plain_layout(budget.layout(state.parent)),
        "divergence": state.divergence,
        "history": [vars(line) for line in state.history],
    }
