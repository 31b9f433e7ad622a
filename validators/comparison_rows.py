# SPDX-License-Identifier: Apache-2.0
"""The rows of a comparison: every number that is known of one artefact at least."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunec.validators.artefact import Weights
from prunec.validators.intervals import ABSENT, bounds
from prunec.validators.measurements import Estimate
from prunec.validators.results import Report
from prunec.validators.units import count, number, size
from prunec.validators.verdicts import verdict


@dataclass(frozen=True)
class Side:
    """An artefact: what its report says, or only its files.

    kind: `build`, `validated`, or what `inspect` calls a checkpoint
    problems: sentences on what is wrong with it
    """

    folder: Path
    name: str
    kind: str
    report: Report | None
    weights: Weights | None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """What an artefact has in a row: `text` to be read, the number with its interval.

    `value` is None for what it lacks, and NaN for what could not be measured.
    """

    text: str = ABSENT
    value: float | str | None = None
    low: float | None = None
    high: float | None = None
    level: float | None = None


@dataclass(frozen=True)
class Row:
    """A number of every artefact. `key` is its name in JSON."""

    key: str
    title: str
    cells: tuple[Cell, ...]


#: The numbers of one artefact: by key, a title and what is known.
_Numbers = Iterator[tuple[str, str, Cell]]


def rows_of(sides: Sequence[Side]) -> list[Row]:
    """All rows that any artefact has something in."""
    rows = []
    for section in (_sizes, _making, _texts, _tasks, _speeds, _footprints, _verdict):
        found = [{key: (title, cell) for key, title, cell in section(side)} for side in sides]
        titles = {key: title for each in found for key, (title, _) in each.items()}
        for key, title in titles.items():
            cells = tuple(each[key][1] if key in each else Cell() for each in found)
            rows.append(Row(key, title, cells))
    return rows


def _sizes(side: Side) -> _Numbers:
    """Sizes by the report, or by the files where there is none."""
    report, weights = side.report, side.weights
    if known := (report.pruned if report else weights):
        yield "parameters", "parameters", Cell(count(known.parameters), known.parameters)
        if report and report.counted:
            share = f"{report.sparsity:.1%}".replace("%", " %")
            yield "sparsity", "sparsity", Cell(share, report.sparsity)
        yield "bytes", "weight files", Cell(size(known.bytes), known.bytes)
        if known.kv_bytes_per_token or report or (weights and weights.layers):
            cache = known.kv_bytes_per_token
            yield "kv_bytes_per_token", "KV cache per token", Cell(size(cache), cache)
    if cell := _layers(side):
        yield "layers", "layers", cell
    if weights and weights.dtypes:
        text = ", ".join(weights.dtypes)
        yield "dtype", "dtype", Cell(text, text)


def _layers(side: Side) -> Cell | None:
    """How many layers there are, and how many of these lack attention or MLP."""
    if side.report:
        kinds = [(bool(layer["attention"]), bool(layer["mlp"])) for layer in side.report.layers]
    else:
        layers = side.weights.layers if side.weights else ()
        kinds = [(layer.attention, layer.mlp) for layer in layers]
    if not kinds:
        return None
    lost = (
        ("attention", sum(not attention for attention, _ in kinds)),
        ("MLP", sum(not mlp for _, mlp in kinds)),
    )
    without = [f"{layers} without {what}" for what, layers in lost if layers]
    return Cell("\n".join([str(len(kinds)), *without]), len(kinds))


def _making(side: Side) -> _Numbers:
    """What a tuner found, and what recovery gained, each on the texts of its own recipe."""
    report = side.report
    if report and (tuned := report.tuning):
        best = next((trial.value for trial in tuned.trials if trial.number == tuned.best), None)
        text = f"{number(best, 4)}\n{tuned.sampler}, {len(tuned.trials)} trials"
        yield f"tuning.{tuned.objective}", f"tuned {tuned.objective}", Cell(text, best)
    if report and (found := report.recovery):
        if not found.kept:
            yield "recovery.ratio", "recovery, held-out loss", Cell("1.000\nnot kept", 1.0)
            return
        ratio = found.after / found.before if found.before else math.nan
        text = f"{number(ratio, 3)}\n{number(found.before, 4)} → {number(found.after, 4)}"
        yield "recovery.ratio", "recovery, held-out loss", Cell(text, ratio)


def _texts(side: Side) -> _Numbers:
    if (report := side.report) is None:
        return
    found = {"perplexity": ("", report.perplexity)} if report.perplexity else {}
    found |= {f"elsewhere.{name}": (f" on {name}", text) for name, text in report.elsewhere.items()}
    for key, (on, text) in found.items():
        assert text is not None  # only measured ones are here
        yield f"{key}.ratio", f"perplexity ratio{on}", _estimated(text.ratio)
        yield f"{key}.divergence", f"divergence{on}", _estimated(text.divergence, 4)


def _tasks(side: Side) -> _Numbers:
    for found in side.report.tasks if side.report else ():
        key, name = f"tasks.{found.task}.{found.backend}", f"{found.task} ({found.backend})"
        yield f"{key}.score", f"{name}, {found.metric}", _estimated(found.pruned_estimate)
        yield f"{key}.recovery", f"{name}, recovery", _estimated(found.recovery)


def _speeds(side: Side) -> _Numbers:
    for found in side.report.speeds if side.report else ():
        key = f"speed.{found.runtime}.{found.phase}.batch_{found.batch}"
        name = f"{found.runtime} {found.phase}, batch {found.batch}"
        yield f"{key}.speedup", f"{name}, speedup", _estimated(found.speedup)


def _footprints(side: Side) -> _Numbers:
    for found in side.report.footprints if side.report else ():
        key, name = f"footprint.{found.artefact}", f"{found.artefact} artefact"
        yield f"{key}.bytes", f"{name}, files", Cell(size(found.file_bytes), found.file_bytes)
        if found.resident_bytes is not None:
            cell = Cell(size(found.resident_bytes), found.resident_bytes)
            yield f"{key}.resident_bytes", f"{name}, in memory", cell


def _verdict(side: Side) -> _Numbers:
    if side.report:
        word = verdict(side.report)
        yield "verdict", "verdict", Cell(word, word)


def _estimated(found: Estimate, decimals: int = 3) -> Cell:
    """The value, and its interval on a line of its own."""
    if not math.isfinite(found.value):
        return Cell("not measured", math.nan)
    text = number(found.value, decimals)
    if math.isfinite(found.low) and math.isfinite(found.high):
        text += f"\n{bounds(found, lambda value: number(value, decimals))}"
    return Cell(text, found.value, found.low, found.high, found.level)
