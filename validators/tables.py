# SPDX-License-Identifier: Apache-2.0
"""A report and an artefact on the terminal, as rich tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from prunec.validators.markdown import (
    comparison_rows,
    layer_picture,
    perplexity_note,
    surrogate_notes,
)
from prunec.validators.units import count, printable, size

if TYPE_CHECKING:
    from rich.console import Console

    from prunec.validators.artefact import Artefact
    from prunec.validators.results import Report


def render_table(report: Report, console: Console, folder: Path | None = None) -> None:
    """Dense against pruned, the completions, the gates, and where things are.

    Paths are shown under `folder`, the build's, if it is given.
    """
    table = _table("", "dense", "pruned", "ratio")
    for row in comparison_rows(report):
        table.add_row(*row)
    console.print(table)
    if note := perplexity_note(report):
        console.print(_text(note, "dim"))
    for note in surrogate_notes(report.search) if report.search else ():
        console.print(_text(note, "dim"))
    if said := report.completion:
        texts = Table("dense", "pruned", expand=True, show_lines=True)
        texts.add_row(_text(said.dense), _text(said.pruned))
        console.print(texts)
    for gate in report.gates:
        mark = _text("passed", "green") if gate.passed else _text("failed", "bold red")
        console.print(mark, _text(gate.message))
    places = [*sorted(report.artefacts.items()), ("report", "report/report.md")]
    for kind, path in places:
        console.print(_text(f"{kind:<8}{folder / path if folder else path}"), soft_wrap=True)


def render_artefact(artefact: Artefact, console: Console) -> None:
    """What `inspect` found: kind and verdict, sizes, layers, recipe, problems."""
    what = {"build": "a build", "pruned": "a model that prunec wrote", "model": "a model"}
    verdict = {True: ", gates passed", False: ", gates failed", None: ""}[artefact.passed]
    console.print(_text(f"{artefact.folder}: {what[artefact.kind]}{verdict}", "bold"))
    if weights := artefact.weights:
        table = Table(show_header=False, box=None)
        table.add_row("model type", _text(weights.model_type))
        table.add_row("parameters", f"{count(weights.parameters)} ({weights.parameters:,})")
        table.add_row("weight files", f"{size(weights.bytes)} in {weights.files}")
        table.add_row("dtype", _text(", ".join(weights.dtypes)))
        if weights.layers:
            table.add_row("prunable", f"{count(weights.prunable_parameters)} parameters")
            table.add_row("KV cache", f"{size(weights.kv_bytes_per_token)} per token")
        console.print(table)
        if weights.layers:
            shapes = [layer.as_dict() for layer in weights.layers]
            console.print(_text(layer_picture(shapes, _dense_layers(artefact))), soft_wrap=True)
    if artefact.recipe is not None:
        console.print(_text("recipe", "bold"))
        console.print(_text(artefact.recipe.rstrip()), soft_wrap=True)
    for problem in artefact.problems:
        console.print(_text("problem", "bold red"), _text(problem), soft_wrap=True)


def _dense_layers(artefact: Artefact) -> Sequence[dict[str, int]]:
    """The dense model's layers, if the report tells them: what the bars are a part of."""
    stated = (artefact.report or {}).get("dense_layers")
    keys = ("query_heads", "kv_heads", "ffn")
    return [
        {key: layer[key] for key in keys}
        for layer in (stated if isinstance(stated, list) else ())
        if isinstance(layer, dict) and all(type(layer.get(key)) is int for key in keys)
    ]


def _table(first: str, *others: str) -> Table:
    table = Table(first)
    for header in others:
        table.add_column(header, justify="right")
    return table


def _text(text: str, style: str = "") -> Text:
    # Text, not markup: what a model or a recipe says may hold brackets.
    return Text(printable(text), style=style)
