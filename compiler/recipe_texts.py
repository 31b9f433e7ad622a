# SPDX-License-Identifier: Apache-2.0
"""Which text of a recipe serves which purpose: what is fitted to cannot judge."""

from __future__ import annotations

from dataclasses import dataclass

from prunec.compiler.recipe_checks import refusal
from prunec.compiler.recipe_sources import (
    ChatSource,
    DocumentsSource,
    FittingSource,
    HubSource,
    JsonlSource,
    MixedSource,
    PythonStdlibSource,
    Split,
    TextSource,
)


@dataclass(frozen=True)
class Reading:
    """A source in a recipe: where it stands, and the split that is its section's own.

    may_share: whether it may read an earlier section's very source, documents of its own
    """

    place: tuple[str, ...]
    home: Split
    source: FittingSource | None
    may_share: bool = False


def with_split(source: FittingSource, split: Split | None, *, anew: bool = False) -> FittingSource:
    """The source with a split named wherever it is the standard library and names none; `anew`:
    whatever it names."""
    if isinstance(source, MixedSource):
        parts = {
            name: part.model_copy(update={"source": with_split(part.source, split, anew=anew)})
            for name, part in source.parts.items()
        }
        return source.model_copy(update={"parts": parts})
    if isinstance(source, PythonStdlibSource) and (anew or source.split is None):
        return source.model_copy(update={"split": split})
    return source


def keep_apart(earlier: Reading, later: Reading) -> None:
    """Refuses one text for two purposes; of splits, points at the section that left its own."""
    if earlier.source is None or later.source is None:
        return
    for one_at, one in _parts(earlier.source):
        for two_at, two in _parts(later.source):
            if one == two and _kept_apart(earlier, later, one):
                continue
            if (shared := _shared_text(one, two)) is None:
                continue
            here, there = earlier.place + one_at, later.place + two_at
            if _split(one):
                sides = (earlier.home, here, there), (later.home, there, here)
                home, astray, other = sides[0] if _split(two) == later.home else sides[1]
                raise refusal(
                    f"is {shared}, which {_reader(other)} reads too; they must be disjoint",
                    f"remove it: the split that is read there by default is {home}",
                    at=(*astray, "split"),
                )
            raise refusal(
                f"reads {shared}, as {_reader(here)} does; they must be disjoint",
                "give each text of its own, or both the same holdout; what was fitted to cannot "
                "judge"
                if later.home == "evaluation" and isinstance(two, DocumentsSource)
                else "give each text of its own; what was fitted to cannot judge",
                at=there,
            )


def _kept_apart(earlier: Reading, later: Reading, source: FittingSource) -> bool:
    """Whether two texts of one source share no document: those that judge read what is held out,
    others are dealt documents of their own."""
    if later.home == "evaluation":
        return isinstance(source, DocumentsSource) and source.holdout is not None
    return later.may_share and (not _split(source) or earlier.home == later.home)


def judging_source(source: FittingSource | None) -> FittingSource | None:
    """What judges where nothing else is named: what calibration's source holds out."""
    held = isinstance(source, DocumentsSource) and source.holdout is not None
    return source if held else None


def _parts(source: FittingSource) -> list[tuple[tuple[str, ...], FittingSource]]:
    """The texts of a source, each with where it stands in it."""
    if not isinstance(source, MixedSource):
        return [((), source)]
    return [(("parts", name, "source"), part.source) for name, part in source.parts.items()]


def _reader(place: tuple[str, ...]) -> str:
    """What reads the source at a place."""
    return ".".join(place).removesuffix(".source")


def _split(source: FittingSource) -> Split | None:
    return source.split if isinstance(source, PythonStdlibSource) else None


def _shared_text(one: FittingSource, two: FittingSource) -> str | None:
    """What two sources have in common, as far as it shows; None where that is nothing."""
    match one, two:
        case PythonStdlibSource(), PythonStdlibSource() if one.split == two.split:
            return f'"{one.split}"'
        case (
            TextSource() | JsonlSource() | ChatSource() | HubSource(),
            TextSource() | JsonlSource() | ChatSource() | HubSource(),
        ):
            common = sorted(_texts(one) & _texts(two))
            return common[0] if common else None
    return None


def _texts(source: TextSource | JsonlSource | ChatSource | HubSource) -> set[str]:
    """The files of a source, or its split of a dataset, by names that two sources share if they
    share text."""
    if not isinstance(source, HubSource) and source.files:
        return {*source.files}
    assert isinstance(source, ChatSource | HubSource)
    config = f", {source.config}" if source.config else ""
    return {f"{source.dataset} ({source.split or 'train'}{config})"}
