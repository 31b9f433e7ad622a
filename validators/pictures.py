# SPDX-License-Identifier: Apache-2.0
"""The pictures of a report: which there are, what they say in words, and their bytes.

As files they have a light panel of their own, so that they read the same on a light page, a dark
one and on paper; a page takes them without a panel, in either theme, wide or narrow. The same
report gives the same bytes. matplotlib is imported when something is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunec.validators.picture_of_layers import describe_layers, draw_layers
from prunec.validators.picture_of_recovery import describe_recovery, draw_recovery, finite_points
from prunec.validators.picture_of_scores import (
    describe_speeds,
    describe_tasks,
    describe_texts,
    draw_speeds,
    draw_tasks,
    draw_texts,
    texts_of,
)
from prunec.validators.picture_of_search import describe_search, draw_search, finite_history
from prunec.validators.picture_of_tuning import describe_tuning, draw_tuning, finite_trials
from prunec.validators.themes import LIGHT, Theme, style
from prunec.validators.units import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from prunec.validators.results import Report

_NAMES = ("layers", "tuning", "search", "recovery", "texts", "tasks", "speed")

#: The names of all files that pictures may have.
PICTURE_FILES = tuple(f"{name}.{kind}" for name in _NAMES for kind in ("svg", "png"))

#: Inches that a picture is wide in a column of text, and on a phone.
COLUMN, PHONE = 7.0, 3.3

_PIXELS_PER_INCH = 160


@dataclass(frozen=True)
class Picture:
    """A picture of a report: its name, which its files bear, and its gist in words.

    draw: makes the figure of a theme and a width in inches; without a width, as wide as suits it
    """

    name: str
    description: str
    draw: Callable[[Theme, float | None], Figure]

    def files(self) -> dict[str, bytes]:
        """The picture as NAME.svg and NAME.png."""
        with _settings(LIGHT):
            figure, words = self.draw(LIGHT, None), printable(self.description)
            told = {"Description": words}
            return {
                f"{self.name}.svg": _svg(figure, metadata={"Title": words, "Date": None}),
                f"{self.name}.png": _saved(
                    figure, format="png", dpi=_PIXELS_PER_INCH, metadata=told
                ),
            }

    def svg(self, theme: Theme, width: float, font: str) -> bytes:
        """The picture for a page: no panel, `width` inches wide, set in a CSS font family."""
        with _settings(theme):
            figure = self.draw(theme, width)
            content = _svg(figure, transparent=True, metadata={"Date": None})
        return content.replace(b"'DejaVu Sans'", font.encode())


def pictures_of(report: Report) -> list[Picture]:
    """Those of a report's pictures that there is anything to show for. Nothing is drawn yet."""
    layers, dense = report.layers, report.dense_layers
    pictures = []
    if layers:
        words = describe_layers(layers, dense)
        pictures.append(
            Picture("layers", words, lambda theme, width: draw_layers(layers, dense, theme, width))
        )
    if (tuning := report.tuning) and finite_trials(tuning):
        words = describe_tuning(tuning)
        pictures.append(
            Picture("tuning", words, lambda theme, width: draw_tuning(tuning, theme, width))
        )
    if (search := report.search) and finite_history(search):
        words = describe_search(search)
        pictures.append(
            Picture("search", words, lambda theme, width: draw_search(search, theme, width))
        )
    if (recovery := report.recovery) and finite_points(recovery):
        words = describe_recovery(recovery)
        pictures.append(
            Picture("recovery", words, lambda theme, width: draw_recovery(recovery, theme, width))
        )
    if texts := texts_of(report.perplexity, report.elsewhere):
        words = describe_texts(texts)
        pictures.append(
            Picture("texts", words, lambda theme, width: draw_texts(texts, theme, width))
        )
    if tasks := report.tasks:
        words = describe_tasks(tasks)
        pictures.append(
            Picture("tasks", words, lambda theme, width: draw_tasks(tasks, theme, width))
        )
    if speeds := report.speeds:
        words = describe_speeds(speeds)
        pictures.append(
            Picture("speed", words, lambda theme, width: draw_speeds(speeds, theme, width))
        )
    return pictures


@contextmanager
def _settings(theme: Theme) -> Iterator[None]:
    """matplotlib as the theme wants it: nothing of what the user has told it may show."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(style(theme))
        yield


def _svg(figure: Figure, **options: Any) -> bytes:
    """matplotlib writes control characters of names as they are, with which it is no XML."""
    lines = _saved(figure, format="svg", **options).decode("utf-8").split("\xa0")
    return "\xa0".join(map(printable, lines)).encode("utf-8")


def _saved(figure: Figure, **options: Any) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, **options)
    return content.getvalue()
