# SPDX-License-Identifier: Apache-2.0
"""What serving the pruned model is like: speed, footprint, and whether exports answer alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
from prunec.validators.intervals import ABSENT, bounds, interval_title, measured
from prunec.validators.measurements import FootprintResult, ParityResult, SpeedResult
from prunec.validators.results import Report
from prunec.validators.units import size

_PHASES = {
    "prefill": ("Prefill: the whole prompt at once", "to first token"),
    "decode": ("Decode: one token after the other", "per token"),
}


def speed(report: Report) -> Section | None:
    """Tokens per second and latency of both models, phase by phase."""
    if not report.speeds:
        return None
    said: list[Block] = [Figure("speed")]
    for phase in _PHASES:
        if speeds := [found for found in report.speeds if found.phase == phase]:
            said += _phase(phase, speeds)
    said.append(
        Paragraph(
            "Medians, tokens per second over the whole batch. The models took turns on the same "
            "machine; the speedup is the median over pairs of turns. Intervals take turns as "
            "independent, and add 3 % on either side for what two processes of one model differ by."
        )
    )
    said += [
        Paragraph(
            f"{found.runtime}, {found.phase}, batch {found.batch} was not measured: "
            f"{found.error.rstrip('.')}."
        )
        for found in report.speeds
        if found.error
    ]
    return Section("Speed", tuple(said))


def footprint(report: Report) -> Section | None:
    """Bytes on disk and in memory of every artefact."""
    if not report.footprints:
        return None
    columns = (
        Column("artefact"),
        *(Column(f"files, {which}", "number") for which in ("dense", "pruned", "ratio")),
        *(Column(f"memory, {which}", "number") for which in ("dense", "pruned", "ratio")),
    )
    rows = [_footprint_row(found) for found in report.footprints]
    made = table("Bytes of files, and resident once loaded", columns, rows)
    notes = [
        Paragraph(f"Memory of {found.artefact} was not measured: {found.note.rstrip('.')}.")
        for found in report.footprints
        if found.note
    ]
    return Section("Footprint", (made, *notes))


def parity(report: Report) -> Section | None:
    """Whether every export answers as the model that it was written from."""
    if not report.parities:
        return None
    columns = (
        Column("export"),
        Column("largest difference of log-probabilities", "number"),
        Column("tolerance", "number"),
        Column("equal greedy tokens", "number"),
        Column("verdict", "verdict"),
    )
    made = table("Exports against the model", columns, [_parity_row(p) for p in report.parities])
    errors = [
        Paragraph(f"{found.artefact} could not be compared: {found.error.rstrip('.')}.")
        for found in report.parities
        if found.error
    ]
    return Section("Parity of the exports", (made, *errors))


def _phase(phase: str, speeds: Sequence[SpeedResult]) -> list[Table | Paragraph]:
    caption, latency = _PHASES[phase]
    columns = (
        Column("runtime"),
        Column("batch", "number"),
        Column("prompt tokens", "number", detail=True),
        Column("new tokens", "number", detail=True),
        Column("dense, tokens/s", "number"),
        Column("pruned, tokens/s", "number"),
        Column("speedup", "number"),
        Column(interval_title(found.speedup for found in speeds), "number"),
        Column("pairs", "number", detail=True),
        Column(f"dense, {latency}", "number", detail=True),
        Column(f"pruned, {latency}", "number", detail=True),
    )
    made = table(caption, columns, [_speed_row(found) for found in speeds])
    made, constants = without_constants(made, ("prompt tokens", "new tokens", "pairs"))
    return [made, Paragraph(constants)] if constants else [made]


def _speed_row(found: SpeedResult) -> tuple[str, ...]:
    return (
        found.runtime,
        str(found.batch),
        f"{found.prompt_tokens:,}",
        f"{found.new_tokens:,}",
        _rate(found.dense),
        _rate(found.pruned),
        measured(found.speedup.value),
        bounds(found.speedup),
        str(found.speedup.count or ABSENT),
        _milliseconds(found.dense_seconds),
        _milliseconds(found.pruned_seconds),
    )


def _footprint_row(found: FootprintResult) -> tuple[str, ...]:
    return (
        found.artefact,
        *_bytes(found.dense_file_bytes, found.file_bytes),
        *_bytes(found.dense_resident_bytes, found.resident_bytes),
    )


def _parity_row(found: ParityResult) -> tuple[str, ...]:
    if found.error:
        return (found.artefact, ABSENT, f"{found.tolerance:g}", ABSENT, "not compared")
    return (
        found.artefact,
        f"{found.difference:.2g}" if math.isfinite(found.difference) else "not finite",
        f"{found.tolerance:g}",
        f"{found.agreed:,} of {found.compared:,}",
        "same" if found.same else "differs",
    )


def _bytes(dense: int | None, pruned: int | None) -> tuple[str, str, str]:
    ratio = f"{pruned / dense:.3f}" if dense and pruned is not None else ABSENT
    before, after = (ABSENT if value is None else size(value) for value in (dense, pruned))
    return before, after, ratio


def _rate(value: float) -> str:
    return measured(value, 0 if value >= 100 else 1 if value >= 10 else 2)


def _milliseconds(seconds: float) -> str:
    """0.01234 → "12.3 ms"."""
    if not math.isfinite(seconds):
        return ABSENT
    value = 1000 * seconds
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"
