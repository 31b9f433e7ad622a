# SPDX-License-Identifier: Apache-2.0
"""Which code an artefact brings or leads to, and whether it is ours."""

from __future__ import annotations

import json
from collections.abc import Iterator, Set
from functools import cache
from pathlib import Path
from typing import Any

from prunec.compiler.model import modeling
from prunec.exporters import configuration_decilm

#: Beside a model it is a way to another folder's: transformers opens that one first.
_ADAPTER = "adapter_config.json"


def brings_only_our_code(folder: Path) -> bool:
    """Whether every Python file in a folder is, byte for byte, one that this prunec writes there,
    and nothing in it leads to code that lies elsewhere.

    Such a folder may be opened with `trust_remote_code`; of others nothing is run.
    """
    ours = _ours()
    for path in folder.rglob("*"):
        if path.name == _ADAPTER or (path.is_symlink() and path.is_dir()):
            return False
        if path.suffix == ".py" and path.read_bytes() != ours.get(path.name):
            return False
    return all(_names_only(ours.keys(), path) for path in folder.glob("*config.json"))


def _names_only(ours: Set[str], config: Path) -> bool:
    """Whether all classes that a config names are in our files, in its own folder.

    Others can have a path before them, or another folder or repository: `place--module.Class`.
    """
    named: list[Any] = []

    def note(section: dict[str, Any]) -> dict[str, Any]:
        named.append(section.get("auto_map"))
        return section

    try:
        json.loads(config.read_bytes(), object_hook=note)
    except (ValueError, RecursionError):
        return False
    return all(f"{reference.rpartition('.')[0]}.py" in ours for reference in _texts(named))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, dict):
        yield from _texts(list(value.values()))


@cache
def _ours() -> dict[str, bytes]:
    files = [*Path(modeling.__file__).parent.glob("*.py"), Path(configuration_decilm.__file__)]
    return {path.name: path.read_bytes() for path in files}
