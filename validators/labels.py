# SPDX-License-Identifier: Apache-2.0
"""Labels beside the points of a picture, where they hide neither points nor each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.path import Path
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

#: A polyline in a panel's data.
Line = Sequence[tuple[float, float]]

#: Where a label may stand, the best place first: offset in points, alignment.
_PLACES = [
    (x * distance, y * distance, horizontal, vertical)
    for distance in (5, 9, 16)
    for x, y, horizontal, vertical in (
        (1, 0.8, "left", "bottom"),
        (1, -0.8, "left", "top"),
        (-1, 0.8, "right", "bottom"),
        (-1, -0.8, "right", "top"),
        (1.4, 0, "left", "center"),
        (-1.4, 0, "right", "center"),
        (0, 1.6, "center", "bottom"),
        (0, -1.6, "center", "top"),
    )
]
_POINT = 3.5  # points that a marker reaches
_TOLERATED = 0.5  # of a letter, that a label may hide


@dataclass(frozen=True)
class Label:
    """A text beside (x, y) of a panel's data.

    rank: those of low rank are placed first; 0 is set in bold and stands in any case, others are
    left out where there is no room
    """

    text: str
    x: float
    y: float
    colour: str
    rank: int = 1


@dataclass(frozen=True)
class Labelled:
    """A panel, its labels, all its points, and the lines that labels should not cross."""

    panel: Axes
    labels: Sequence[Label]
    points: Line
    lines: Sequence[Line]


def place_labels(figure: Figure, labelled: Sequence[Labelled]) -> None:
    """Write the labels of every panel, each where it hides least and is nearest to its own point.

    What else is in the figure must be there already: what moves panels later moves points away from
    under their labels.
    """
    from matplotlib.path import Path
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # settles where the panels are
    reach = _POINT * figure.dpi / 72
    for found in labelled:
        panel, to_pixels = found.panel, found.panel.transData.transform
        taken = [text.get_window_extent() for text in panel.texts]
        points = [(x, y) for x, y in map(to_pixels, found.points)]
        for x, y in points:
            taken.append(Bbox.from_extents(x - reach, y - reach, x + reach, y + reach))
        paths = [Path(to_pixels(line)) for line in found.lines if len(line) > 1]
        for label in sorted(found.labels, key=lambda one: one.rank):
            own = tuple(to_pixels((label.x, label.y)))
            others = [point for point in points if point != own]
            if (box := _place(panel, label, _Surroundings(own, others, taken, paths))) is not None:
                taken.append(box)


@dataclass(frozen=True)
class _Surroundings:
    """What is around a label, in pixels: its point, the others, what is taken, what is drawn."""

    own: tuple[float, float]
    others: Sequence[tuple[float, float]]
    taken: Sequence[Bbox]
    paths: Sequence[Path]

    def hidden(self, box: Bbox, panel: Bbox) -> float:
        """How much of an area as large as a letter a label here would hide, or have cut off.

        What lies nearer to another point than to its own is misread: that counts as much.
        """
        letter = box.height**2
        outside = max(0.0, box.width * box.height - _common(box, panel))
        crossed = sum(path.intersects_bbox(box, filled=False) for path in self.paths)
        covered = sum(_common(box, other) for other in self.taken)
        away = _distance(box, self.own)
        misread = any(_distance(box, other) < away for other in self.others)
        return (2 * outside + covered) / letter + 0.2 * crossed + misread


def _place(panel: Axes, label: Label, around: _Surroundings) -> Bbox | None:
    """Write a label at the first of the places where it hides least; what it covers there."""
    best: tuple[float, Annotation, Bbox] | None = None
    for x, y, horizontal, vertical in _PLACES:
        written = panel.annotate(
            label.text,
            (label.x, label.y),
            xytext=(x, y),
            textcoords="offset points",
            ha=horizontal,
            va=vertical,
            color=label.colour,
            fontweight="normal" if label.rank else "bold",
            zorder=6,
        )
        written.set_in_layout(False)
        box = written.get_window_extent()
        hidden = around.hidden(box, panel.bbox)
        if best is not None and best[0] <= hidden:
            written.remove()
            continue
        if best is not None:
            best[1].remove()
        best = (hidden, written, box)
        if not hidden:
            break
    assert best is not None  # there are places
    if label.rank and best[0] > _TOLERATED:
        best[1].remove()
        return None
    return best[2]


def _distance(box: Bbox, point: tuple[float, float]) -> float:
    """From a point to the nearest of a box."""
    x, y = point
    return math.hypot(max(box.x0 - x, 0, x - box.x1), max(box.y0 - y, 0, y - box.y1))


def _common(one: Bbox, other: Bbox) -> float:
    """Pixels that lie in both."""
    wide = min(one.x1, other.x1) - max(one.x0, other.x0)
    high = min(one.y1, other.y1) - max(one.y0, other.y0)
    return wide * high if wide > 0 and high > 0 else 0.0
