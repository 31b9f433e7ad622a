# SPDX-License-Identifier: Apache-2.0
"""A latency table as a person reads it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import LayerSpec, dense_layout
from prunec.compiler.search.latency import Latency, Phase, Times

_SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)


def render_latency(facts: Facts, latency: Latency, console: Console) -> None:
    """Milliseconds of a layer's sublayers and of a whole model, at a few sizes, in both phases."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    headings = ("phase", "query heads", "KV heads", "attention ms", "FFN", "MLP ms", "model ms")
    for heading in (*headings, "speed-up"):
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    phases: tuple[Phase, ...] = ("prefill", "decode")
    for phase in phases:
        times = latency.times(phase)
        dense = times.of_layout(dense_layout(facts))
        for share in _SHARES:
            spec = _at(facts, times, share)
            whole = times.of_layout((spec,) * facts.layers)
            table.add_row(
                phase if share == 1.0 else "",
                str(spec.query_heads),
                str(spec.kv_heads),
                _milliseconds(times.of_attention((spec.query_heads, spec.kv_heads))),
                str(spec.ffn),
                _milliseconds(times.of_mlp(spec.ffn)),
                _milliseconds(whole),
                f"{dense / whole:.2f}",
            )
    console.print(table)
    console.print(
        f"{latency.batch} × {latency.tokens} tokens at {latency.dtype} on "
        f"{latency.machine['hardware']}, {latency.machine['threads']} threads; repeats spread "
        f"by ±{latency.spread / 2:.0%}",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )


def _at(facts: Facts, times: Times, share: float) -> LayerSpec:
    """About a share of a layer: whole KV groups, and a width that was measured."""
    kv = round(share * facts.kv_heads)
    width = min((0, *times.mlp), key=lambda one: abs(one - share * facts.ffn))
    return LayerSpec(kv * (facts.query_heads // facts.kv_heads), kv, facts.head_dim, width)


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}"
