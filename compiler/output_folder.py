# SPDX-License-Identifier: Apache-2.0
"""What already lies where a build or a sweep is to write, and whether it may be replaced.

Exports replace whole folders. Only what a manifest of ours or an artefact's own list names is ever
replaced: a stranger's folder that bears one of our names is refused before anything is computed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prunec.compiler.diagnostics import BuildError
from prunec.compiler.store import file_sha256
from prunec.exporters import EXPORTERS
from prunec.validators.artefact import GRAPH
from prunec.validators.errors import ValidationError
from prunec.validators.headers import read_json_object
from prunec.validators.manifest import CARD, LISTING, MANIFEST
from prunec.validators.report import LM_EVAL, REPORT_FILES
from prunec.validators.sweep_report import SWEEP_FILES

#: Where a build's files without a name lie while it runs.
SCRATCH = ".scratch"
STORE = ".store"

#: Lies in a store from the beginning: which dense model it is of.
DENSE_MODEL = "model.json"
REPORT = "report"

#: The recipe that `validate` writes where none is given.
DEFAULT_RECIPE = "recipe.yaml"

#: What stands at the top of a model folder, whoever wrote it.
_OF_A_MODEL = ("config.json", GRAPH, LISTING)
_FINGERPRINT = re.compile(r"[0-9a-f]{20}")
_HINT = "choose another --output, or move it away"


@dataclass(frozen=True)
class OutputFolder:
    """A place where a build writes. `store`: where its steps' results are kept, here or in the
    folder of a sweep."""

    root: Path
    store: Path

    def check_place(self) -> None:
        """BuildError if this is a model, a sweep, or something else that bears a build's names."""
        _refuse_model(self.root)
        if _is_sweep(self.root / SWEEP_FILES[0]):
            raise BuildError(
                f"{self.root} holds a sweep, and a build needs a folder of its own",
                hint="choose another --output",
            )
        if not self._ours:
            names = [MANIFEST, STORE, SCRATCH, REPORT, *EXPORTERS]
            places = [self.root / name for name in names]
            places += [partial_folder(self.root, kind) for kind in EXPORTERS]
            places += [old_folder(self.root, kind) for kind in EXPORTERS]
            _refuse_foreign(places)
        elif (self.root / MANIFEST).exists() and self._manifest is None:
            _refuse_foreign([self.root / MANIFEST])

    def check(self, exports: Collection[str], kept: Collection[str]) -> None:
        """BuildError if `exports` and a report could not be written here without a loss.

        kept: those of them that are there already, and are not going to be written anew
        """
        self.check_place()
        for kind in EXPORTERS:
            folder = self.root / kind
            if not folder.exists() and not folder.is_symlink():
                continue
            if kind not in exports and self._listed(kind):
                raise BuildError(
                    f"{folder} is of an earlier build, and would pass for this one's, which "
                    f"writes no {kind}",
                    hint=_HINT,
                )
            if kind in exports:
                self._check_export(folder, kind, replaced=kind not in kept)
        self._check_report()

    def _check_export(self, folder: Path, kind: str, *, replaced: bool) -> None:
        there = _files(folder)
        if folder.is_symlink() or not folder.is_dir():
            _refuse_foreign([folder])
        if not there:
            return
        listing = _content(folder / LISTING).get("files")
        listed = {*(listing if isinstance(listing, dict) else ()), *self._listed(kind)}
        if not listed:
            _refuse_foreign([folder])
        _refuse_files(folder, there - listed - {CARD, LISTING})
        written = self._listed(kind).get(CARD)
        if replaced and written and CARD in there and file_sha256(folder / CARD) != written:
            raise BuildError(
                f"{folder / CARD} was edited since it was written; it would be replaced",
                hint=_HINT,
            )

    def _check_report(self) -> None:
        folder = self.root / REPORT
        there, listed = _files(folder), self._listed(REPORT)
        if not there:
            return
        ours = {name for name in there if _is_report_file(name)}
        if self._manifest is not None:  # it names all of lm-eval's files
            ours = {name for name in ours if "/" not in name}
        elif not isinstance(_content(folder / REPORT_FILES[0]).get("prunec_version"), str):
            ours = {name for name in ours if name.endswith(".partial")}
        _refuse_files(folder, there - ours - listed.keys())

    @cached_property
    def _manifest(self) -> Mapping[str, Any] | None:
        """The manifest of an earlier build, of this version or another; None if there is none."""
        found = _content(self.root / MANIFEST)
        kinds = {"fingerprint": str, "steps": dict, "files": dict}
        ours = all(isinstance(found.get(key), kind) for key, kind in kinds.items())
        return found if ours else None

    @property
    def _ours(self) -> bool:
        return self._manifest is not None or is_store(self.store)

    def _listed(self, folder: str) -> dict[str, str]:
        """SHA-256 of files that the manifest says a folder holds, by their paths in it."""
        files = self._manifest["files"] if self._manifest else {}
        return {
            name.removeprefix(f"{folder}/"): str(entry.get("sha256"))
            for name, entry in files.items()
            if name.startswith(f"{folder}/") and isinstance(entry, dict)
        }


def check_sweep_place(root: Path) -> None:
    """BuildError if a sweep cannot be written to a folder without a loss; its points have folders
    of their own there."""
    _refuse_model(root)
    if OutputFolder(root, root / STORE)._manifest is not None:
        raise BuildError(
            f"{root} holds a build, and a sweep needs a folder of its own",
            hint="choose another --output",
        )
    if _is_sweep(root / SWEEP_FILES[0]) or is_store(root / STORE):
        return
    _refuse_foreign(root / name for name in (*SWEEP_FILES, STORE))


def is_store(folder: Path) -> bool:
    """Whether a folder keeps results of steps, or is made to and has none yet."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    begun = names <= {DENSE_MODEL, f"{DENSE_MODEL}.partial"}
    return begun or any(_FINGERPRINT.fullmatch(name) for name in names)


def _refuse_model(root: Path) -> None:
    for name in _OF_A_MODEL:
        if (root / name).exists():
            raise BuildError(
                f"{root} is a model folder: {name} lies in it",
                hint="choose another --output",
            )


def _refuse_foreign(paths: Iterable[Path]) -> None:
    for path in paths:
        filled = not path.is_dir() or any(path.iterdir())
        if path.is_symlink() or (path.exists() and filled):
            raise BuildError(f"{path} exists, and is not of a build; it would be replaced", _HINT)


def _refuse_files(folder: Path, names: Collection[str]) -> None:
    """Tell of files that lie in a folder of ours, and that prunec has not written."""
    if not names:
        return
    first, *others = sorted(names)
    more = f" and {len(others)} more in {folder}" if others else ""
    is_, it = ("are", "they") if others else ("is", "it")
    raise BuildError(
        f"{folder / first}{more} {is_} not of a build; {it} would be lost or pass for its own",
        hint=_HINT,
    )


def _files(folder: Path) -> set[str]:
    """Everything below a folder that is no folder, by its path in it."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


def _is_report_file(name: str) -> bool:
    """Whether a report has a file of this name, or had it half written."""
    whole = name.removeprefix(".").removesuffix(".partial")
    return (
        name.split("/")[0] == LM_EVAL
        or name in REPORT_FILES
        or (whole in REPORT_FILES and name == f".{whole}.partial")
    )


def _is_sweep(path: Path) -> bool:
    found = _content(path)
    return isinstance(found.get("points"), list) and isinstance(found.get("schema_version"), int)


def _content(path: Path) -> Mapping[str, Any]:
    """A JSON object; nothing where there is none."""
    if not path.is_file():
        return {}
    try:
        return read_json_object(path)
    except ValidationError:
        return {}


def partial_folder(output: Path, kind: str) -> Path:
    """Where an export is written before it gets its name."""
    return output / f".{kind}.partial"


def old_folder(output: Path, kind: str) -> Path:
    """Where an earlier export is set aside while the new one takes its place."""
    return output / f".{kind}.old"
