# SPDX-License-Identifier: Apache-2.0
"""The dense model's next-token distributions, which candidates are compared with."""

from __future__ import annotations

import torch

from prunec.compiler.model.layout import dense_layout
from prunec.compiler.plan import Step
from prunec.compiler.search.divergence import Teacher, TeacherDistributions
from prunec.compiler.steps.context import Context, Progress, Summary
from prunec.compiler.store import Entry
from prunec.compiler.teacher_store import StoredTeacher, chunks, has_chunk, save_chunk


@torch.no_grad()
def run_teacher(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    decoder, ids, top_k = context.decoder, context.ids(step), step.params["top_k"]
    hidden = decoder.embedded(ids)
    for index, spec in enumerate(dense_layout(decoder.facts)):
        layer = decoder.layer(index, spec, decoder.layer_tensors(index))
        for batch in decoder.batches(*ids.shape):
            hidden[batch] = decoder.feed(layer, decoder.attend(layer, hidden[batch]))
        progress(index + 1, decoder.facts.layers, "layers")
    for number, chunk in enumerate(chunks(ids, top_k)):
        if has_chunk(entry, number):  # an earlier run came as far
            continue
        parts = []
        for few in decoder.few(chunk.stop - chunk.start, ids.shape[1]):
            logits = decoder.logits(hidden[chunk.start + few.start : chunk.start + few.stop])
            parts.append(TeacherDistributions.from_logits(logits, top_k).to(torch.device("cpu")))
        save_chunk(entry, number, parts)
    return {"token_forwards": ids.numel()}


def teacher_of(context: Context, step: Step) -> Teacher | None:
    """What a step in the role `teacher` has kept, on the device, or in the store where memory has
    no room for hidden states either; None where there is no such step."""
    if "teacher" not in step.inputs:
        return None
    stored = stored_teacher(context, step)
    return stored if context.decoder.placement.states_in_file else stored[:]


def stored_teacher(context: Context, step: Step) -> StoredTeacher:
    """What the step in the role `teacher` has kept. LostResultError if some of it is gone."""
    made = context.plan.step(step.inputs["teacher"])
    windows = chunks(context.ids(made), made.params["top_k"])
    return StoredTeacher(context.entry(step, "teacher"), windows, context.decoder.device)
