# SPDX-License-Identifier: Apache-2.0
"""The picture of the layers in characters, for terminals and Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_BAR = 16  # characters of a full bar


def layer_bars(layers: Sequence[Mapping[str, Any]], dense: Sequence[Mapping[str, Any]]) -> str:
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


def _bar(value: int, full: int) -> str:
    eighths = round(value / full * _BAR * 8) if full else 0
    if value and not eighths:
        eighths = 1  # something is left: let it be seen
    whole, part = divmod(eighths, 8)
    bar = "█" * whole + (" ▏▎▍▌▋▊▉"[part] if part else "")
    return bar.ljust(_BAR, "·")
