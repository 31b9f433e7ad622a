# SPDX-License-Identifier: Apache-2.0
"""The pictures of a report: which there are, what they say in words, and their bytes.

A light panel of its own, so that they read the same on a light page, a dark one and on paper; hues
of Okabe and Ito, told apart by every kind of colour vision, and never the only sign. The same
report gives the same bytes. matplotlib is imported when something is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunec.validators.picture_of_layers import describe_layers, draw_layers
from prunec.validators.picture_of_search import describe_search, draw_search, finite_history

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from prunec.validators.results import Report

#: The names of all files that pictures may have.
PICTURE_FILES = tuple(f"{name}.{kind}" for name in ("layers", "search") for kind in ("svg", "png"))

_PIXELS_PER_INCH = 160

_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same metrics everywhere
    "font.size": 8,
    "axes.edgecolor": "#8c8c8c",
    "axes.labelcolor": "#262626",
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": "#262626",
    "axes.titlelocation": "left",
    "axes.titlesize": 8.5,
    "figure.constrained_layout.h_pad": 0.05,  # inches
    "figure.constrained_layout.w_pad": 0.06,
    "figure.facecolor": "#ffffff",
    "hatch.linewidth": 0.7,
    "svg.fonttype": "none",  # text stays text: it can be searched, read out and restyled
    "svg.hashsalt": "prunec",
    "text.color": "#262626",
    "xtick.color": "#595959",
    "ytick.color": "#595959",
}


@dataclass(frozen=True)
class Picture:
    """A picture of a report: its name, which its files bear, and its gist in words."""

    name: str
    description: str
    _draw: Callable[[], Figure]

    def files(self) -> dict[str, bytes]:
        """The picture as NAME.svg and NAME.png."""
        import matplotlib

        # Nothing of what the user has told matplotlib may show.
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_STYLE)
            figure = self._draw()
            return {
                f"{self.name}.svg": _saved(
                    figure, format="svg", metadata={"Title": self.description, "Date": None}
                ),
                f"{self.name}.png": _saved(
                    figure,
                    format="png",
                    dpi=_PIXELS_PER_INCH,
                    metadata={"Description": self.description},
                ),
            }


def pictures_of(report: Report) -> list[Picture]:
    """`layers`, and `search` where one has measured anything. Nothing is drawn yet."""
    layers, dense = report.layers, report.dense_layers
    pictures = []
    if layers:
        words = describe_layers(layers, dense)
        pictures.append(Picture("layers", words, lambda: draw_layers(layers, dense)))
    if (search := report.search) and finite_history(search):
        words = describe_search(search)
        pictures.append(Picture("search", words, lambda: draw_search(search)))
    return pictures


def _saved(figure: Figure, **options: Any) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, **options)
    return content.getvalue()
