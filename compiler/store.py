# SPDX-License-Identifier: Apache-2.0
"""Results of steps, by fingerprint, on disk: whole or not at all.

Every file is written beside its place, flushed to the disk and renamed. A tensor file carries its
digest in its name and a JSON file inside, so that damage is found when it is read: what is damaged
counts as missing and is made again. Of what is saved under a name there is one version: the earlier
one goes before the later one comes, so that a kill between the two leaves none. A step is finished
when its `finished.json` is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, dtype

    from prunec.compiler.model.tensor_file import Sliced

_FINISHED = "finished"
_RECORD = {"found", "seconds", "peak_rss_bytes"}


class LostResultError(Exception):
    """A later step needs what a finished one had saved, and it is missing or damaged."""

    def __init__(self, entry: Entry, part: str) -> None:
        super().__init__(f"{entry.folder} has lost {part}")
        self.entry = entry


class Store:
    """A folder of entries, one a fingerprint."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def entry(self, fingerprint: str) -> Entry:
        return Entry(self.root / fingerprint)

    def clear(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.root, ignore_errors=True)


class Entry:
    """What one step has made so far: named tensors and JSON values."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def finish(self, record: Mapping[str, Any]) -> None:
        """Mark the step as done; everything that it saved must have been saved before."""
        self.save_json(_FINISHED, record)

    def record(self) -> dict[str, Any] | None:
        """What `finish` was given; None while the step is not done, or was by another layout."""
        record = self.load_json(_FINISHED)
        return record if isinstance(record, dict) and record.keys() >= _RECORD else None

    def discard(self) -> None:
        """Forget all that the step has made."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def found(self) -> dict[str, Any]:
        """What a finished step found. LostResultError if that is gone."""
        record = self.record()
        if record is None:
            raise LostResultError(self, _FINISHED)
        found: dict[str, Any] = record["found"]
        return found

    def require_tensors(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """`load_tensors` of what a finished step has saved. LostResultError if it is gone."""
        loaded = self.load_tensors(name)
        if loaded is None:
            raise LostResultError(self, name)
        return loaded

    def reopen(self) -> None:
        """Count the step as not done; what it saved and is sound stays."""
        self.forget_json(_FINISHED)

    def forget_json(self, name: str) -> None:
        """Remove a saved value, if there is one."""
        (self.folder / f"{name}.json").unlink(missing_ok=True)

    def save_json(self, name: str, value: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(value, sort_keys=True)
        sealed = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "value": text}
        write_text(self.folder / f"{name}.json", json.dumps(sealed))

    def load_json(self, name: str) -> dict[str, Any] | None:
        """A saved value; None if there is none, or it is damaged."""
        try:
            sealed = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
            text = sealed["value"]
            if hashlib.sha256(text.encode()).hexdigest() != sealed["sha256"]:
                return None
            value: dict[str, Any] = json.loads(text)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return value

    def save_tensors(
        self,
        name: str,
        tensors: Mapping[str, Sliced],
        facts: Mapping[str, Any] | None = None,
        dtypes: Mapping[str, dtype] | None = None,
    ) -> None:
        """Save tensors under a name, with JSON-ready facts beside them; what was saved under it
        before goes.

        `dtypes` are of those that are stored at another than their own; they are converted while
        they are written, with no second copy.
        """
        from prunec.compiler.model.tensor_file import save

        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"{name}.partial"
        sha256 = save(partial, tensors, {"facts": json.dumps(facts or {})}, dtypes)
        target = self.folder / f"{name}.{sha256[:16]}.safetensors"
        _sync(partial)
        if earlier := [path for path in self._versions(name) if path != target]:
            for path in earlier:
                path.unlink(missing_ok=True)
            _sync(self.folder)  # else a power cut might keep both
        partial.rename(target)
        _sync(self.folder)

    def load_tensors(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """(tensors, facts) that were saved; None if there are none, or they are damaged."""
        from safetensors import safe_open

        path = self.tensor_file(name)
        if path is None:
            return None
        with safe_open(path, framework="pt") as file:
            keys, facts = file.keys(), json.loads(file.metadata()["facts"])
        tensors = {}
        for key in keys:
            # Opened for each: what is mapped counts as memory until it is closed. And copied: the
            # store's files may go while their tensors are in use.
            with safe_open(path, framework="pt") as file:
                tensors[key] = file.get_tensor(key).clone()
        return tensors, facts

    def tensor_file(self, name: str) -> Path | None:
        """The file of tensors that were saved; None if there are none, or they are damaged, or
        nothing tells which of several versions is the last one."""
        sound = []
        for path in self._versions(name):
            if file_sha256(path)[:16] == path.name.split(".")[-2]:
                sound.append(path)
            else:
                path.unlink(missing_ok=True)
        if len(sound) > 1:
            self.forget_tensors(name)
            return None
        return sound[0] if sound else None

    def forget_tensors(self, name: str) -> None:
        """Remove tensors that were saved and are of no more use. `name` may be a pattern."""
        for path in self._versions(name):
            path.unlink(missing_ok=True)

    def _versions(self, name: str) -> list[Path]:
        """The files under a name: one, or none, unless another program has put some there."""
        return list(self.folder.glob(f"{name}.{'[0-9a-f]' * 16}.safetensors"))


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, and onto the disk."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        _sync(partial)
        partial.rename(path)
        _sync(path.parent)
    except OSError as error:
        # Only what fails to open names its file, not what fails to take any more.
        error.filename = error.filename or str(path)
        raise


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_tree(folder: Path) -> None:
    """Flush every file below a folder to the disk, and the folders' own entries."""
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
