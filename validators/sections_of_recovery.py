# SPDX-License-Identifier: Apache-2.0
"""How the pruned model was trained back: what that gained, whether it was kept, what it took."""

from __future__ import annotations

import math

from prunec.validators.blocks import Block, Column, Figure, Paragraph, Section, Table, table
from prunec.validators.intervals import ABSENT, measured
from prunec.validators.results import RecoveryResult, Report
from prunec.validators.units import number

_TRAINED = {
    "lora": "low-rank adapters (LoRA)",
    "blockwise": "the weights themselves, layer by layer",
}


def recovery(report: Report) -> Section | None:
    """The held-out loss before and after, and over the tokens between."""
    found = report.recovery
    if found is None:
        return None
    said: list[Block] = [Figure("recovery", table=_point_table(found))]
    said += map(Paragraph, recovery_notes(found))
    if found.kept and found.merge_error is not None:
        said.append(
            Paragraph(
                "Merging the adapters into the weights changed no logit by more than "
                f"{found.merge_error:.1e}."
            )
        )
    return Section("Recovery", tuple(said))


def recovery_notes(found: RecoveryResult) -> list[str]:
    """What recovery did, in sentences; a warning where it was of no use."""
    what = _TRAINED.get(found.kind, found.kind)
    trained = f"Trained on {found.tokens:,} tokens: {what}, {found.trained:,} parameters"
    if found.kind == "blockwise":
        trained += " at most at once"
    notes = [outcome(found), f"{trained}."]
    if found.stopped:
        notes.append(f"Training ended before its budget: {found.stopped.rstrip('.')}.")
    return notes


def outcome(found: RecoveryResult) -> str:
    """What became of the held-out loss, in a sentence that warns where that is no better."""
    loss = f"held-out loss ({found.loss.rstrip('.')})"
    before, after = number(found.before, 4), number(found.after, 4)
    if found.kept:
        moved = "fell" if found.after < found.before else "went"
        return f"The {loss} {moved} from {before} to {after}."
    if not math.isfinite(found.after):
        reached = f"the {loss} was {before} before and {after} after it"
    elif found.after <= found.before:
        reached = f"training brought the {loss} of {before} no lower"
    else:
        reached = f"it raised the {loss} from {before} to {after}"
    return f"Recovery was of no use: {reached}. The weights are those from before it."


def _point_table(found: RecoveryResult) -> Table | None:
    if not found.points:
        return None
    columns = (
        Column("tokens"),
        Column("held-out loss", "number"),
        Column("training loss since", "number"),
    )
    rows = [
        (
            f"{point.tokens:,}",
            measured(point.held_out, 4),
            ABSENT if point.training is None else measured(point.training, 4),
        )
        for point in found.points
    ]
    return table(f"Loss: {found.loss}", columns, rows)
