# SPDX-License-Identifier: Apache-2.0
"""What a store gives back is the last that was saved, whole, or nothing, whenever it was killed."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from prunec.compiler import store
from prunec.compiler.model.layout import LayerSelection
from prunec.compiler.passes.nested import CutLayer
from prunec.compiler.recovery.blockwise import LayerRecovery
from prunec.compiler.recovery_store import StoredLayerRecovery
from prunec.compiler.store import Entry


class Killed(BaseException):
    """As by SIGKILL: nothing of ours sees it."""


def _save(entry: Entry, value: int, name: str = "ids") -> None:
    entry.save_tensors(name, {"ids": torch.full((3,), value)}, {"value": value})


def _load(entry: Entry, name: str = "ids") -> int | None:
    """The value that tensors and facts agree on; None if there are none."""
    found = entry.load_tensors(name)
    if found is None:
        return None
    tensors, facts = found
    assert torch.equal(tensors["ids"], torch.full((3,), facts["value"]))
    value: int = facts["value"]
    return value


def test_the_last_version_of_a_tensor_is_the_one_that_is_read(tmp_path: Path) -> None:
    entry = Entry(tmp_path / "entry")
    for value in range(20):  # digests sort in no order
        _save(entry, value)
        assert _load(entry) == value
    assert len(list(entry.folder.iterdir())) == 1
    _save(entry, 19)
    assert _load(entry) == 19


def test_names_that_begin_alike_are_different_ones(tmp_path: Path) -> None:
    entry = Entry(tmp_path / "entry")
    _save(entry, 1, "layer")
    _save(entry, 2, "layer.1")
    _save(entry, 3, "layer-1")
    assert [_load(entry, name) for name in ("layer", "layer.1", "layer-1")] == [1, 2, 3]
    entry.forget_tensors("layer-*")
    assert [_load(entry, name) for name in ("layer", "layer.1", "layer-1")] == [1, 2, None]


def test_a_kill_at_any_moment_leaves_the_last_version_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: set[int | None] = set()
    for moment in itertools.count():
        entry = Entry(tmp_path / str(moment))
        _save(entry, 1)
        calls = itertools.count()

        def killed_then(call: Any, calls: Any = calls, moment: int = moment) -> Any:
            def run(*arguments: Any, **options: Any) -> Any:
                if next(calls) == moment:
                    raise Killed
                return call(*arguments, **options)

            return run

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", killed_then(Path.rename))
            patch.setattr(Path, "unlink", killed_then(Path.unlink))
            patch.setattr(store, "_sync", killed_then(store._sync))
            try:
                _save(entry, 2)
            except Killed:
                survived = False
            else:
                survived = True
        found = _load(entry)
        assert len(list(entry.folder.glob("*.safetensors"))) <= 1
        left.add(found)
        _save(entry, 3)
        assert _load(entry) == 3
        if survived:
            assert found == 2
            break
    assert left == {1, None, 2}


def test_of_two_versions_that_are_both_sound_none_is_believed(tmp_path: Path) -> None:
    entry, other = Entry(tmp_path / "entry"), Entry(tmp_path / "other")
    _save(entry, 1)
    _save(other, 2)
    for path in other.folder.iterdir():
        path.rename(entry.folder / path.name)
    assert _load(entry) is None and not list(entry.folder.iterdir())


def test_a_damaged_version_does_not_stand_in_the_way_of_a_sound_one(tmp_path: Path) -> None:
    entry = Entry(tmp_path / "entry")
    _save(entry, 1)
    (entry.folder / "ids.0123456789abcdef.safetensors").write_bytes(b"damaged")
    assert _load(entry) == 1


def test_a_trained_layer_never_stands_beside_what_is_told_of_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the two files of a pair a kill leaves no pair."""
    stored = StoredLayerRecovery(Entry(tmp_path / "entry"))
    selection = LayerSelection((0,), (0,), (0, 1))

    def save(value: float) -> None:
        cut = CutLayer(selection, {"weight": torch.full((2,), value)})
        stored.save(0, cut, _told(value))

    save(1.0)
    for patched in ("save_tensors", "save_json"):
        with monkeypatch.context() as patch:
            patch.setattr(Entry, patched, _kill)
            with pytest.raises(Killed):
                save(2.0)
        assert stored.load(0) is None
        save(1.0)
    found = stored.load(0)
    assert found is not None and found[1] == _told(1.0)


def _told(value: float) -> LayerRecovery:
    return LayerRecovery(value, value, kept=True, training=None, parameters=2)


def _kill(*_: object, **__: object) -> None:
    raise Killed
