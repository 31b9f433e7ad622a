# SPDX-License-Identifier: Apache-2.0
"""The dense model's next-token distributions, which candidates are compared with."""

from __future__ import annotations

import torch

from prunec.compiler.model.layout import dense_layout
from prunec.compiler.plan import Step
from prunec.compiler.search.divergence import TeacherDistributions
from prunec.compiler.steps.context import Context, Progress, Summary
from prunec.compiler.store import Entry


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


def teacher_of(context: Context, step: Step) -> TeacherDistributions | None:
    """What a step in the role `teacher` has kept, on the device; None where there is none."""
    if "teacher" not in step.inputs:
        return None
    tensors, _ = context.entry(step, "teacher").require_tensors("teacher")
    device = context.decoder.device
    return TeacherDistributions(**{name: tensor.to(device) for name, tensor in tensors.items()})
