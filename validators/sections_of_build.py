# SPDX-License-Identifier: Apache-2.0
"""What was built and how: layers, search, completions, cost, where things are, how to repeat it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import PurePath

from prunec.validators.blocks import (
    Block,
    Code,
    Column,
    Completions,
    Figure,
    Paragraph,
    Section,
    Table,
    table,
)
from prunec.validators.layer_bars import layer_bars
from prunec.validators.results import Report, SearchPoint, SearchResult, SurrogateResult
from prunec.validators.units import duration, number, size

_SHAPES = (("query_heads", "query heads"), ("kv_heads", "KV heads"), ("ffn", "FFN width"))


def layers(report: Report) -> Section | None:
    """What each layer keeps."""
    if not report.layers:
        return None
    bars = layer_bars(report.layers, report.dense_layers)
    return Section("Layers", (Figure("layers", bars, _layer_table(report)),))


def search(report: Report) -> Section | None:
    """How the layout was found, and what each round's surrogate was worth."""
    found = report.search
    if found is None:
        return None
    uniform, winner = found.divergence.uniform, found.divergence.winner
    said: list[Block] = [
        Figure("search"),
        Paragraph(
            f"Divergence from the dense model, nats per token: {number(uniform, 4)} for the "
            f"uniform layout, {number(winner, 4)} for the one that was found."
        ),
    ]
    if found.history:
        said.append(_round_table(found))
    if found.history and found.surrogates:
        said.append(
            Paragraph(
                "Rank correlation: how far the surrogate had put layouts in the order in which "
                "they then measured; 1 is the same order, 0 what chance would give, −1 the reverse."
            )
        )
    said += map(Paragraph, surrogate_notes(found) if found.history else ())
    return Section("Search", tuple(said))


def surrogate_notes(search: SearchResult) -> list[str]:
    """A sentence for every round that went on without its surrogate."""
    return [
        f"Round {found.round} went on without its surrogate: {found.fell_back.rstrip('.')}."
        for found in search.surrogates
        if found.fell_back
    ]


def completions(report: Report) -> Section | None:
    """What both models make of the recipe's prompt."""
    said = report.completion
    if said is None:
        return None
    return Section("Completions", (Completions(said.prompt, said.dense, said.pruned),))


def cost(report: Report) -> Section:
    """What the build took."""
    spent = report.cost
    text = (
        f"{duration(spent.seconds)}, {spent.token_forwards:,} token-forwards, "
        f"peak memory {size(spent.peak_rss_bytes)}."
    )
    said: list[Block] = [Paragraph(text)]
    if any(step.reused for step in spent.steps):
        said.append(Paragraph("What was reused from earlier runs counts as it did then."))
    rows = [(s.name, duration(s.seconds), "reused" if s.reused else "") for s in spent.steps]
    columns = (Column("step"), Column("time", "number"), Column(""))
    if rows:
        said.append(table("Steps of the build", columns, rows, sparse=True))
    return Section("Cost", tuple(said))


def places(report: Report) -> Section:
    """Where the exports lie, and how the first of them is loaded."""
    if not report.artefacts:
        return Section("Where things are", (Paragraph("Nothing was exported."),))
    columns = (Column("export"), Column("path", "code"))
    inside = not any(PurePath(path).is_absolute() for path in report.artefacts.values())
    said: list[Block] = [
        Paragraph("Relative to the build's folder:" if inside else "What was judged:"),
        table("Exports", columns, sorted(report.artefacts.items())),
    ]
    if folder := report.artefacts.get("hf"):
        where = json.dumps(folder, ensure_ascii=False)
        where += ", trust_remote_code=True" if report.remote_code else ""
        code = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained({where}, dtype="auto")\n'
            f"tokenizer = AutoTokenizer.from_pretrained({where})"
        )
        label = "To load it, from the build's folder:" if inside else "To load it:"
        said.append(Code(label, code, "python"))
    return Section("Where things are", tuple(said))


def recipe(report: Report) -> Section | None:
    """The recipe as it was run."""
    if not report.recipe_text.strip():
        return None
    return Section("Recipe", (Code("As it was run:", report.recipe_text.rstrip(), "yaml"),))


def origin(report: Report) -> Section:
    """On what the numbers were measured, and the command that measures them again."""
    said: list[Block] = []
    if report.command:
        said.append(Code("This report is made again by", report.command, "sh"))
    if report.hardware:
        said.append(_pairs("Hardware", "value", report.hardware))
    versions = {"prunec": report.prunec_version, **dict(sorted(report.versions.items()))}
    said.append(_pairs("Versions", "version", versions))
    return Section("Reproduction", tuple(said))


def _pairs(caption: str, title: str, values: Mapping[str, str]) -> Table:
    return table(caption, (Column(""), Column(title)), list(values.items()))


def _layer_table(report: Report) -> Table:
    rows = []
    for index, (layer, dense) in enumerate(zip(report.layers, report.dense_layers, strict=True)):
        kept = (f"{int(layer[key]):,} of {int(dense[key]):,}" for key, _ in _SHAPES)
        rows.append((str(index), *kept))
    columns = (Column("layer"), *(Column(title, "number") for _, title in _SHAPES))
    return table("What each layer keeps", columns, rows)


def _round_table(search: SearchResult) -> Table:
    last: dict[int, SearchPoint] = {point.round: point for point in search.history}
    trusted = {found.round: _trust(found) for found in search.surrogates}
    rows = [
        (
            str(r),
            str(point.generation),
            f"{point.token_forwards:,}",
            number(point.divergence, 4),
            *trusted.get(r, ("", "")),
        )
        for r, point in sorted(last.items())
    ]
    titles = ["last generation", "token-forwards", "best divergence"]
    titles += ["probes", "rank correlation of the surrogate"]
    columns = (Column("round"), *(Column(title, "number") for title in titles))
    return table("The end of each round", columns, rows, sparse=True)


def _trust(found: SurrogateResult) -> tuple[str, str]:
    """What a surrogate was calibrated on, and how well it did."""
    value = found.rank_correlation
    known = value is not None and math.isfinite(value)
    return str(found.probes), f"{value:.2f}" if known else "not measured"
