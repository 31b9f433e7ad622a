# SPDX-License-Identifier: Apache-2.0
"""The colours of the pictures on light and on dark paper, and how matplotlib is to set them.

Hues after Okabe and Ito, told apart by every kind of colour vision, each with at least 3:1 to its
paper; text has at least 4.5:1 to what it lies on. Colours are never the only sign.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Theme:
    """Colours, by what they stand for. `on_hue`: of text that lies on one of the three hues."""

    paper: str
    ink: str
    quiet: str
    axis: str
    band: str
    removed: str
    blue: str
    green: str
    orange: str
    on_hue: str
    dropped: str


LIGHT = Theme(
    paper="#ffffff",
    ink="#262626",
    quiet="#595959",
    axis="#8c8c8c",
    band="#f2f2f2",
    removed="#e6e6e6",
    blue="#0072b2",
    green="#00845f",
    orange="#d55e00",
    on_hue="#ffffff",
    dropped="#fbe3d2",
)
DARK = Theme(
    paper="#17181b",
    ink="#e6e4df",
    quiet="#a9a7a2",
    axis="#7d7c79",
    band="#202226",
    removed="#34363b",
    blue="#56b4e9",
    green="#35c29a",
    orange="#f28c4b",
    on_hue="#101113",
    dropped="#3d2a1e",
)


def style(theme: Theme) -> dict[Any, Any]:
    """matplotlib's settings for a picture on the theme's paper."""
    return {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same metrics everywhere
        "font.size": 8,
        "axes.edgecolor": theme.axis,
        "axes.facecolor": theme.paper,
        "axes.labelcolor": theme.ink,
        "axes.labelsize": 8,
        "axes.linewidth": 0.6,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlecolor": theme.ink,
        "axes.titlelocation": "left",
        "axes.titlesize": 8.5,
        "figure.constrained_layout.h_pad": 0.05,  # inches
        "figure.constrained_layout.w_pad": 0.06,
        "figure.facecolor": theme.paper,
        "hatch.linewidth": 0.7,
        "svg.fonttype": "none",  # text stays text: it can be searched, read out and restyled
        "svg.hashsalt": "prunec",
        "text.color": theme.ink,
        "text.parse_math": False,  # what stands between two dollar signs of a name is no formula
        "xtick.color": theme.quiet,
        "ytick.color": theme.quiet,
    }
