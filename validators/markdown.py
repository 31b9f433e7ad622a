# SPDX-License-Identifier: Apache-2.0
"""report.md: the verdict first, then what it rests on."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prunec.validators.results import Report, SearchPoint, SearchResult, SurrogateResult
from prunec.validators.units import count, duration, number, printable, size

if TYPE_CHECKING:
    from prunec.validators.pictures import Picture

_BAR = 16  # characters of a full bar


def comparison_rows(report: Report) -> list[tuple[str, str, str, str]]:
    """Dense against pruned: (what, dense, pruned, ratio) for every measured size."""
    dense, pruned = report.dense, report.pruned
    rows = []
    for what, say, before, after in (
        ("parameters", count, dense.parameters, pruned.parameters),
        ("prunable parameters", count, dense.prunable_parameters, pruned.prunable_parameters),
        ("weight files", size, dense.bytes, pruned.bytes),
        ("KV cache per token", size, dense.kv_bytes_per_token, pruned.kv_bytes_per_token),
    ):
        ratio = f"{after / before:.3f}" if before else ""
        rows.append((what, say(before), say(after), ratio))
    if found := report.perplexity:
        values = (number(found.dense), number(found.pruned), number(found.ratio, 3))
        rows.append(("perplexity", *values))
    return rows


def perplexity_note(report: Report) -> str | None:
    """On what the perplexities were measured, and how sure their ratio is."""
    found = report.perplexity
    if found is None:
        return None
    text = f"Perplexity per token on {found.tokens:,} tokens of {found.source}"
    low, high = (number(bound, 3) for bound in found.ratio_interval)
    if low == high == number(None):
        return f"{text}; no interval for the ratio could be estimated."
    return f"{text}; 95 % interval of the ratio {low} … {high}."


def layer_picture(layers: Sequence[Mapping[str, Any]], dense: Sequence[Mapping[str, Any]]) -> str:
    """One line a layer: bars and numbers for query heads, KV heads and FFN width, of the dense."""
    columns = (("query_heads", "query heads"), ("kv_heads", "KV heads"), ("ffn", "FFN"))
    full = {
        key: max((int(layer[key]) for layer in (*dense, *layers)), default=0) for key, _ in columns
    }
    width = {key: 2 * len(str(full[key])) + 1 for key, _ in columns}
    lines = ["layer  " + "  ".join(f"{title:<{_BAR + 1 + width[key]}}" for key, title in columns)]
    for index, layer in enumerate(layers):
        cells = []
        for key, _ in columns:
            said = f"{layer[key]}/{full[key]}".rjust(width[key])
            cells.append(f"{_bar(int(layer[key]), full[key])} {said}")
        lines.append(f"{index:>5}  " + "  ".join(cells))
    return "\n".join(line.rstrip() for line in lines)


def surrogate_notes(search: SearchResult) -> list[str]:
    """A sentence for every round that went on without its surrogate."""
    return [
        f"Round {found.round} went on without its surrogate: {found.fell_back.rstrip('.')}."
        for found in search.surrogates
        if found.fell_back
    ]


def markdown(report: Report, pictures: Sequence[Picture] = ()) -> str:
    """The text of report.md, with links to those of its pictures that lie beside it."""
    shown = {picture.name: _picture(picture) for picture in pictures}
    verdict = "Passed" if report.passed else "Failed"
    share = f"{report.sparsity:.1%}".replace("%", " %")
    headline = f"# {verdict}: {_cell(report.recipe)}, {share} of the prunable parameters removed"
    parts = [headline, "\n".join(f"- {_cell(gate.message)}" for gate in report.gates)]
    parts.append(_table(("", "dense", "pruned", "ratio"), comparison_rows(report)))
    parts.append(_cell(perplexity_note(report) or "Perplexity was not measured."))
    parts += ["## Gates", _gates(report)]
    parts += ["## Layers", shown.get("layers", "")]
    parts.append(_fence(layer_picture(report.layers, report.dense_layers)))
    if report.search is not None:
        parts += ["## Search", shown.get("search", ""), *_search(report.search)]
    if said := report.completion:
        parts += ["## Completions", "Prompt:", _fence(said.prompt), "Dense:", _fence(said.dense)]
        parts += ["Pruned:", _fence(said.pruned)]
    parts += ["## Cost", *_cost(report)]
    parts += ["## Where things are", *_places(report)]
    parts += ["## Versions", _table(("", "version"), sorted(report.versions.items()))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _gates(report: Report) -> str:
    if not report.gates:
        return "The recipe sets none."
    rows = [
        (
            f"`{gate.name}`",
            number(gate.measured, 4),
            f"{gate.comparison} {gate.threshold}",
            "passed" if gate.passed else "**failed**",
        )
        for gate in report.gates
    ]
    return _table(("gate", "measured", "threshold", "verdict"), rows)


def _search(search: SearchResult) -> list[str]:
    uniform, winner = search.divergence.uniform, search.divergence.winner
    text = (
        f"Divergence from the dense model, nats per token: {number(uniform, 4)} for the uniform "
        f"layout, {number(winner, 4)} for the one that was found."
    )
    last: dict[int, SearchPoint] = {point.round: point for point in search.history}
    rows = [
        [str(r), str(p.generation), f"{p.token_forwards:,}", number(p.divergence, 4)]
        for r, p in sorted(last.items())
    ]
    if not rows:
        return [text]
    header = ["round", "last generation", "token-forwards", "best divergence"]
    if not search.surrogates:
        return [text, _table(header, rows)]
    trusted = {found.round: _trust(found) for found in search.surrogates}
    for row, r in zip(rows, sorted(last), strict=True):
        row += trusted.get(r, ("", ""))
    note = (
        "Rank correlation: how far the surrogate had put layouts in the order in which they then "
        "measured; 1 is the same order, 0 what chance would give, −1 the reverse."
    )
    table = _table([*header, "probes", "rank correlation of the surrogate"], rows)
    return [text, table, note, *map(_cell, surrogate_notes(search))]


def _trust(found: SurrogateResult) -> tuple[str, str]:
    """What a surrogate was calibrated on, and how well it did."""
    value = found.rank_correlation
    known = value is not None and math.isfinite(value)
    return str(found.probes), f"{value:.2f}" if known else "not measured"


def _picture(picture: Picture) -> str:
    """The PNG, which every viewer shows; behind it the SVG, which can be enlarged and searched."""
    words = picture.description.replace("[", "(").replace("]", ")")
    return f"[![{words}]({picture.name}.png)]({picture.name}.svg)"


def _cost(report: Report) -> list[str]:
    cost = report.cost
    text = (
        f"{duration(cost.seconds)}, {cost.token_forwards:,} token-forwards, "
        f"peak memory {size(cost.peak_rss_bytes)}."
    )
    rows = [(s.name, duration(s.seconds), "reused" if s.reused else "") for s in cost.steps]
    return [text, _table(("step", "time", ""), rows)] if rows else [text]


def _places(report: Report) -> list[str]:
    rows = [(kind, f"`{path}`") for kind, path in sorted(report.artefacts.items())]
    if not rows:
        return ["Nothing was exported."]
    parts = ["Relative to the build's folder:", _table(("export", "path"), rows)]
    if folder := report.artefacts.get("hf"):
        where = json.dumps(folder) + (", trust_remote_code=True" if report.remote_code else "")
        code = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained({where}, dtype="auto")\n'
            f"tokenizer = AutoTokenizer.from_pretrained({where})"
        )
        parts += ["To load it:", _fence(code, "python")]
    return parts


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """One line of text, which cannot end a table's cell."""
    return printable(" ".join(text.split())).replace("|", "\\|")


def _fence(text: str, language: str = "") -> str:
    """A code block, fenced with more backticks than the text has in a row."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{printable(text)}\n{fence}"


def _bar(value: int, full: int) -> str:
    eighths = round(value / full * _BAR * 8) if full else 0
    if value and not eighths:
        eighths = 1  # something is left: let it be seen
    whole, part = divmod(eighths, 8)
    bar = "█" * whole + (" ▏▎▍▌▋▊▉"[part] if part else "")
    return bar.ljust(_BAR, "·")
