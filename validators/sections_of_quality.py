# SPDX-License-Identifier: Apache-2.0
"""What the pruned model is still worth: sizes and perplexity, gates, texts, tasks."""

from __future__ import annotations

import math

from prunec.validators.blocks import (
    Block,
    Column,
    Figure,
    Paragraph,
    Section,
    Table,
    table,
    without_constants,
)
from prunec.validators.intervals import ABSENT, bounds, interval_title, level, measured, signed
from prunec.validators.measurements import PerplexityResult, TaskResult
from prunec.validators.picture_of_scores import texts_of
from prunec.validators.results import Report
from prunec.validators.units import count, number, size

_ITEMS = "Intervals are of paired items, which are taken as independent of each other."
_GROUPS = "The row of a group is of the items of all its tasks together."
_CHANCE = (
    "Above chance: (pruned − chance) ÷ (dense − chance), chance being what guessing among the "
    "choices scores."
)
_WINDOWS = (
    "Intervals are over windows, which are drawn at random from the text, or over stretches of a "
    "text that is measured whole. They say nothing of texts of another kind."
)
_SIGNS = {"<=": "≤", ">=": "≥"}


def comparison(report: Report) -> Section:
    """Dense against pruned, in every size and in perplexity."""
    note = perplexity_note(report) or "Perplexity was not measured."
    return Section("Dense against pruned", (comparison_table(report), Paragraph(note)))


def comparison_table(report: Report) -> Table:
    """One row for every measured size, and for the perplexity."""
    dense, pruned = report.dense, report.pruned
    rows = []
    for what, say, before, after in (
        ("parameters", count, dense.parameters, pruned.parameters),
        ("prunable parameters", count, dense.prunable_parameters, pruned.prunable_parameters),
        ("weight files", size, dense.bytes, pruned.bytes),
        ("KV cache per token", size, dense.kv_bytes_per_token, pruned.kv_bytes_per_token),
    ):
        if not after and not report.counted:
            continue
        ratio = f"{after / before:.3f}" if before else ""
        rows.append((what, say(before), say(after), ratio))
    if found := report.perplexity:
        values = (number(found.dense), number(found.pruned), number(found.ratio.value, 3))
        rows.append(("perplexity", *values))
    numbers = (Column(title, "number") for title in ("dense", "pruned", "ratio"))
    return table("Both models side by side", (Column(""), *numbers), rows)


def perplexity_note(report: Report) -> str | None:
    """On what the perplexities were measured, and how sure their ratio is."""
    found = report.perplexity
    if found is None:
        return None
    text = f"Perplexity per token on {found.tokens:,} tokens of {found.source}"
    if found.reading:
        text += f", in {found.reading}"
    ratio = found.ratio
    if math.isnan(ratio.low) or math.isnan(ratio.high):
        return f"{text}; no interval for the ratio could be estimated."
    return f"{text}; {level(ratio)} interval of the ratio {bounds(ratio)}."


def gates(report: Report) -> Section:
    """What was demanded, what was measured, and the verdict."""
    if not report.gates:
        return Section("Gates", (Paragraph("The recipe sets none."),))
    rows = []
    for gate in report.gates:
        known = gate.low is not None and gate.high is not None
        interval = f"{_plain(gate.low)} … {_plain(gate.high)}" if known else ""
        limit = f"{_SIGNS[gate.comparison]} {_exact(gate.threshold)}"
        rows.append((gate.name, _plain(gate.measured), interval, limit, gate.verdict))
    columns = (
        Column("gate", "code"),
        Column("measured", "number"),
        Column("interval", "number"),
        Column("threshold", "number"),
        Column("verdict", "verdict"),
    )
    return Section("Gates", (table("Gates", columns, rows, sparse=True),))


def texts(report: Report) -> Section | None:
    """Perplexity and divergence on every text, that of `validate.perplexity` first."""
    found = texts_of(report.perplexity, report.elsewhere)
    if not found:
        return None
    columns = (
        Column("text"),
        Column("tokens", "number", detail=True),
        Column("dense", "number"),
        Column("pruned", "number"),
        Column("ratio", "number"),
        Column(interval_title(result.ratio for _, result in found), "number"),
        Column("divergence", "number"),
        Column(interval_title(result.divergence for _, result in found), "number", detail=True),
    )
    rows = [_text_row(name, result) for name, result in found]
    said: list[Block] = [Figure("texts"), table("Perplexity and divergence", columns, rows)]
    said.append(Paragraph(_WINDOWS))
    if report.elsewhere and report.perplexity:
        said.append(
            Paragraph(
                "The first text is the recipe's `validate.perplexity`, the others are its "
                "`validate.elsewhere`: where one is unlike what the weights were fitted to, what "
                "calibration has made narrow shows. Divergence: of the pruned model's next-token "
                "distribution from the dense model's, in nats per token."
            )
        )
    said += [
        Paragraph(f"Divergence on {name} was not measured: {result.undiverged.rstrip('.')}.")
        for name, result in found
        if result.undiverged
    ]
    return Section("Texts", tuple(said))


def tasks(report: Report) -> Section | None:
    """Both models' scores in every task, paired item by item."""
    if not report.tasks:
        return None
    columns = (
        Column("task"),
        Column("backend", detail=True),
        Column("metric", detail=True),
        Column("items", "number", detail=True),
        Column("dense", "number"),
        Column("pruned", "number"),
        Column("difference", "number"),
        Column(interval_title(found.difference for found in report.tasks), "number"),
        Column("recovery", "number"),
        Column(interval_title(found.recovery for found in report.tasks), "number", detail=True),
        Column("above chance", "number"),
        Column(
            interval_title(found.recovery_above_chance or found.recovery for found in report.tasks),
            "number",
            detail=True,
        ),
        Column("one answer always", "number"),
    )
    rows = [_task_row(found) for found in report.tasks]
    said_of = (
        (_ITEMS, any(not found.error for found in report.tasks)),
        (_GROUPS, any(found.tasks for found in report.tasks)),
        (_CHANCE, any(found.recovery_above_chance for found in report.tasks)),
    )
    notes = [note for note, holds in said_of if holds]
    notes += [note for found in report.tasks if (note := _task_note(found))]
    made = table("Scores in tasks", columns, rows, sparse=True)
    made, constants = without_constants(made, ("backend", "metric", "items"))
    said = map(Paragraph, [constants, *notes] if constants else notes)
    return Section("Tasks", (Figure("tasks"), made, *said))


def _text_row(name: str, found: PerplexityResult) -> tuple[str, ...]:
    return (
        name if name == found.source else f"{name} ({found.source})",
        f"{found.tokens:,}",
        number(found.dense),
        number(found.pruned),
        number(found.ratio.value, 3),
        bounds(found.ratio),
        measured(found.divergence.value, 4),
        bounds(found.divergence, lambda value: number(value, 4)),
    )


def _task_row(found: TaskResult) -> tuple[str, ...]:
    above = found.recovery_above_chance
    return (
        f"{found.task} ({len(found.tasks)} tasks)" if found.tasks else found.task,
        found.backend,
        found.metric,
        f"{found.items:,}" if found.items else ABSENT,
        measured(found.dense),
        measured(found.pruned),
        signed(found.difference.value),
        bounds(found.difference, signed),
        measured(found.recovery.value),
        bounds(found.recovery),
        "" if above is None else measured(above.value),
        "" if above is None else bounds(above),
        "" if found.floor is None else measured(found.floor),
    )


def _task_note(found: TaskResult) -> str | None:
    """What the numbers of a task do not say by themselves."""
    name = f"{found.task} ({found.backend})"
    if found.error:
        return f"{name} was not measured: {found.error.rstrip('.')}."
    if found.floor is None or not math.isfinite(found.floor):
        return None
    for which, score in (("dense", found.dense), ("pruned", found.pruned)):
        if score <= found.floor:
            return f"{name}: the {which} model scores no better than one answer given always."
    if found.pruned_estimate.low <= found.floor:
        return f"{name}: the pruned model may score no better than one answer given always."
    return None


def _plain(value: float | None) -> str:
    """A measurement whose unit is its gate's: a ratio, a score, or bytes."""
    if value is None or not math.isfinite(value):
        return ABSENT
    if abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{value:,.4f}" if not value or abs(value) >= 0.001 else f"{value:.2g}"


def _exact(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10_000 and value == round(value) else f"{value}"
