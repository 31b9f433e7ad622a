# SPDX-License-Identifier: Apache-2.0
"""How sparsity is distributed: what each layer keeps of its query heads, KV heads and FFN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunec.validators.themes import LIGHT, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Layers = Sequence[Mapping[str, Any]]

#: Key of a layer's entry, what it counts, and its sublayer.
_ROWS = (
    ("query_heads", "query heads", "attention"),
    ("kv_heads", "KV heads", "attention"),
    ("ffn", "FFN width", "ffn"),
)

_LABEL_SIZE = 6.5  # points
_LABEL_ADVANCE = 0.64 * _LABEL_SIZE  # of a digit of DejaVu Sans
_LABEL_PAD = 0.8
_BAR = 0.84  # of the way from one layer to the next
_LEAST_VISIBLE = 1.2  # percent: something that is left is seen to be left


@dataclass(frozen=True)
class _Row:
    """What all layers keep of one quantity, and what they had."""

    name: str
    sublayer: str
    kept: tuple[int, ...]
    dense: tuple[int, ...]

    @property
    def share(self) -> float:
        """Percent of the whole model's."""
        return 100 * sum(self.kept) / sum(self.dense) if sum(self.dense) else 0.0

    @property
    def shares(self) -> list[float]:
        """Percent, layer by layer; 0 where there was nothing to keep."""
        pairs = zip(self.kept, self.dense, strict=True)
        return [100 * kept / dense if dense else 0.0 for kept, dense in pairs]

    @property
    def dropped(self) -> list[int]:
        """Layers that had some and have none."""
        pairs = enumerate(zip(self.kept, self.dense, strict=True))
        return [layer for layer, (kept, dense) in pairs if dense and not kept]


def describe_layers(layers: Layers, dense: Layers) -> str:
    """The gist of the picture in words, for those who do not see it."""
    rows = _rows(layers, dense)
    parts = [f"What each of the {len(layers)} layers keeps"]
    for row in rows:
        shares = row.shares
        if not sum(row.dense):
            continue
        said = f"{row.name} {row.share:.0f} %"
        if min(shares) == max(shares):
            parts.append(f"{said} in every layer")
        else:
            least, most = shares.index(min(shares)), shares.index(max(shares))
            parts.append(f"{said}, from {_part(row, least)} to {_part(row, most)}")
    queries, _, ffn = rows
    lost = [
        f"{what} of {_numbered(row.dropped)}"
        for what, row in (("attention", queries), ("FFN", ffn))
        if row.dropped
    ]
    text = f"{parts[0]}: " + "; ".join(parts[1:]) + "."
    return f"{text} Dropped whole: {'; '.join(lost)}." if lost else text


def draw_layers(
    layers: Layers, dense: Layers, theme: Theme = LIGHT, width: float | None = None
) -> Figure:
    """One panel for each quantity, one bar for each layer: colour is kept, grey is gone.

    `width` in inches; without one, more for more layers.
    """
    from matplotlib.figure import Figure

    rows = _rows(layers, dense)
    width = width or min(max(6.8, 1.8 + 0.105 * len(layers)), 12.0)
    figure = Figure(figsize=(width, 4.6), layout="constrained")
    panels = figure.subplots(len(rows), 1, sharex=True)
    room = _BAR * 72 * (width - 1.3) / (len(layers) + 0.2)  # points, the width of a bar
    for panel, row in zip(panels, rows, strict=True):
        _fill(panel, row, room, theme)
    _number_layers(panels[-1], len(layers), width)
    _legend(figure, any(row.dropped for row in rows), width, theme)
    return figure


def _rows(layers: Layers, dense: Layers) -> list[_Row]:
    return [
        _Row(
            name,
            sublayer,
            tuple(int(layer[key]) for layer in layers),
            tuple(int(layer[key]) for layer in dense),
        )
        for key, name, sublayer in _ROWS
    ]


def _fill(panel: Axes, row: _Row, room: float, theme: Theme) -> None:
    hue = _hue(row.sublayer, theme)
    places = range(len(row.kept))
    had = [100.0 if dense else 0.0 for dense in row.dense]
    panel.bar(places, had, width=_BAR, color=theme.removed)
    shown = [max(share, _LEAST_VISIBLE) if share else 0.0 for share in row.shares]
    panel.bar(places, shown, width=_BAR, color=hue)
    panel.bar(
        row.dropped,
        [100.0] * len(row.dropped),
        width=_BAR,
        color=theme.dropped,
        edgecolor=theme.orange,
        hatch="////",
        linewidth=0.7,
    )
    longest = max(len(f"{kept:,}") for kept in row.kept)
    if longest * _LABEL_ADVANCE + 2 * _LABEL_PAD <= room:
        for place, (kept, share) in enumerate(zip(row.kept, row.shares, strict=True)):
            if kept:
                _label(panel, place, f"{kept:,}", share, hue, theme)
    panel.axhline(row.share, color=theme.ink, linewidth=0.8, linestyle=(0, (4, 2)))
    panel.annotate(
        f"{row.share:.0f} %",
        (1, row.share),
        xycoords=("axes fraction", "data"),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        fontsize=7.5,
    )
    panel.set_title(f"{row.name}: {sum(row.kept):,} of {sum(row.dense):,}")
    panel.set_ylabel("kept, %")
    panel.set_ylim(0, 103)
    panel.set_yticks([0, 50, 100])
    panel.tick_params(axis="x", length=0)


def _label(panel: Axes, place: int, text: str, share: float, hue: str, theme: Theme) -> None:
    """The count, above its bar, or inside the top of one that leaves no room above."""
    inside = share > 80
    panel.annotate(
        text,
        (place, share),
        xytext=(0, -3 if inside else 3),
        textcoords="offset points",
        ha="center",
        va="top" if inside else "bottom",
        color=theme.on_hue if inside else theme.ink,
        fontsize=_LABEL_SIZE,
        # Parts the line through it, which would strike the number out.
        bbox={
            "facecolor": hue if inside else theme.removed,
            "edgecolor": "none",
            "pad": _LABEL_PAD,
        },
        zorder=3,
    )


def _number_layers(panel: Axes, layers: int, width: float) -> None:
    dense = layers * 6.8 / min(width, 6.8)
    apart = 1 if dense <= 16 else 2 if dense <= 32 else 5 if dense <= 64 else 10
    panel.set_xlim(-0.6, layers - 0.4)
    panel.set_xticks(range(0, layers, apart))
    panel.tick_params(axis="x", length=0 if apart == 1 else 2.5)
    panel.set_xlabel("layer (0 is next to the embedding)")


def _legend(figure: Figure, dropped: bool, width: float, theme: Theme) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    signs: list[Patch | Line2D] = [
        Patch(color=theme.blue, label="attention kept"),
        Patch(color=theme.green, label="FFN kept"),
        Patch(color=theme.removed, label="removed"),
    ]
    if dropped:
        fill, edge = theme.dropped, theme.orange
        sign = Patch(facecolor=fill, edgecolor=edge, hatch="//////", label="dropped whole")
        signs.append(sign)
    signs.append(
        Line2D([], [], color=theme.ink, lw=0.8, ls=(0, (4, 2)), label="all layers together")
    )
    figure.legend(
        handles=signs, loc="outside upper left", ncols=len(signs) if width > 5 else 2, frameon=False
    )


def _hue(sublayer: str, theme: Theme) -> str:
    return theme.blue if sublayer == "attention" else theme.green


def _part(row: _Row, layer: int) -> str:
    return f"{row.kept[layer]:,} of {row.dense[layer]:,} (layer {layer})"


def _numbered(layers: Sequence[int]) -> str:
    return ("layer " if len(layers) == 1 else "layers ") + ", ".join(map(str, layers))
