# SPDX-License-Identifier: Apache-2.0
"""A report and an artefact on the terminal, as rich tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import rich.table
from rich.text import Text

from prunec.validators.blocks import Paragraph, Section, Table
from prunec.validators.layer_bars import layer_bars
from prunec.validators.sections_of_build import surrogate_notes
from prunec.validators.sections_of_quality import comparison_table, perplexity_note, tasks, texts
from prunec.validators.sections_of_recovery import outcome
from prunec.validators.sections_of_serving import footprint, parity, speed
from prunec.validators.sections_of_tuning import tuning_note
from prunec.validators.units import count, printable, size

if TYPE_CHECKING:
    from rich.console import Console

    from prunec.validators.artefact import Artefact
    from prunec.validators.results import Report

_STYLES = {
    "passed": "green",
    "same": "green",
    "failed": "bold red",
    "differs": "bold red",
    "inconclusive": "bold yellow",
    "not compared": "bold red",
    "not built": "bold red",
}


def render_table(report: Report, console: Console, folder: Path | None = None) -> None:
    """Dense against pruned, what was measured, the gates, and where things are.

    Paths are shown under `folder`, the build's, if it is given.
    """
    console.print(rich_table(comparison_table(report)))
    if note := perplexity_note(report):
        console.print(plain(note, "dim"))
    if report.tuning:
        console.print(plain(tuning_note(report.tuning), "dim"))
    for note in surrogate_notes(report.search) if report.search else ():
        console.print(plain(note, "dim"))
    if recovered := report.recovery:
        if recovered.kept:
            console.print(plain(outcome(recovered), "dim"))
        else:
            console.print(plain("warning", "bold yellow"), plain(outcome(recovered)))
    # One text is in the first table already, if it could be measured in full.
    home = report.perplexity
    measured = [texts(report)] if report.elsewhere or (home and home.undiverged) else []
    measured += [tasks(report), speed(report), footprint(report), parity(report)]
    for section in measured:
        if section is not None:
            render_section(section, console)
    if said := report.completion:
        both = rich.table.Table("dense", "pruned", expand=True, show_lines=True)
        both.add_row(plain(said.dense), plain(said.pruned))
        console.print(both)
    for gate in report.gates:
        console.print(plain(gate.verdict, _STYLES[gate.verdict]), plain(gate.message))
    places = [*sorted(report.artefacts.items()), ("report", "report/report.html")]
    for kind, path in places:
        console.print(plain(f"{kind:<8}{folder / path if folder else path}"), soft_wrap=True)


def rich_table(table: Table) -> rich.table.Table:
    """A table for the terminal, without its details."""
    brief = table.brief()
    made = rich.table.Table()
    for column in brief.columns:
        right = column.kind == "number"
        made.add_column(plain(column.title), justify="right" if right else "left", overflow="fold")
    for row in brief.rows:
        cells = zip(row, brief.columns, strict=True)
        made.add_row(
            *(
                plain(cell, _STYLES.get(cell, "") if c.kind == "verdict" else "")
                for cell, c in cells
            )
        )
    return made


def render_section(section: Section, console: Console) -> None:
    """Its tables, and what is said of single rows of them."""
    several = sum(isinstance(block, Table) for block in section.blocks) > 1
    for block in section.blocks:
        if isinstance(block, Table):
            console.print(plain(block.caption if several else section.title, "bold"))
            console.print(rich_table(block))
        elif isinstance(block, Paragraph):
            console.print(plain(block.text, "dim"))


def render_artefact(artefact: Artefact, console: Console) -> None:
    """What `inspect` found: kind and verdict, sizes, layers, recipe, problems."""
    what = {"build": "a build", "pruned": "a model that prunec wrote", "model": "a model"}
    report = artefact.report or {}
    kind = "results of validate" if report.get("method") == "given" else what[artefact.kind]
    verdict = {True: ", gates passed", False: ", gates failed", None: ""}[artefact.passed]
    if report.get("gates") == []:
        verdict = ", no gates"
    console.print(plain(f"{artefact.folder}: {kind}{verdict}", "bold"))
    if weights := artefact.weights:
        table = rich.table.Table(show_header=False, box=None)
        table.add_row("model type", plain(weights.model_type))
        table.add_row("parameters", f"{count(weights.parameters)} ({weights.parameters:,})")
        table.add_row("weight files", f"{size(weights.bytes)} in {weights.files}")
        table.add_row("dtype", plain(", ".join(weights.dtypes)))
        if weights.layers:
            table.add_row("prunable", f"{count(weights.prunable_parameters)} parameters")
            table.add_row("KV cache", f"{size(weights.kv_bytes_per_token)} per token")
        console.print(table)
        if weights.layers:
            shapes = [layer.as_dict() for layer in weights.layers]
            console.print(plain(layer_bars(shapes, _dense_layers(artefact))), soft_wrap=True)
    if artefact.recipe is not None:
        console.print(plain("recipe", "bold"))
        console.print(plain(artefact.recipe.rstrip()), soft_wrap=True)
    for problem in artefact.problems:
        console.print(plain("problem", "bold red"), plain(problem), soft_wrap=True)


def _dense_layers(artefact: Artefact) -> Sequence[dict[str, int]]:
    """The dense model's layers, if the report tells them: what the bars are a part of."""
    stated = (artefact.report or {}).get("dense_layers")
    keys = ("query_heads", "kv_heads", "ffn")
    return [
        {key: layer[key] for key in keys}
        for layer in (stated if isinstance(stated, list) else ())
        if isinstance(layer, dict) and all(type(layer.get(key)) is int for key in keys)
    ]


def plain(text: str, style: str = "") -> Text:
    """Text as it is: what a model or a recipe says may hold what looks like markup."""
    return Text(printable(text), style=style)
