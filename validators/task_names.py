# SPDX-License-Identifier: Apache-2.0
"""Which tasks a name stands for in lm-eval's index, and whether they need a network."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_BUNDLED = ("arrow", "csv", "json", "parquet", "text")  # loaders of `datasets` for local files


def leaves_of(index: Mapping[str, Any], name: str) -> Iterator[dict[str, Any] | None]:
    """The configs of the tasks that a name stands for; None for one that is not in the index."""
    entry = index.get(name)
    if entry is None:
        yield None
        return
    kind = entry.kind.name
    if kind == "TAG":
        members: Sequence[Any] = sorted(entry.tags)
    elif kind == "GROUP" and isinstance((entry.cfg or {}).get("task"), list):
        members = entry.cfg["task"]
    else:
        yield entry.cfg or {}
        return
    for member in members:
        override = member if isinstance(member, dict) else {}
        child = override.get("task") or override.get("group") or member
        if isinstance(child, str) and child in index:
            yield from leaves_of(index, child)
        elif "dataset_path" in override or "custom_dataset" in override:
            yield override  # a task that the group itself defines
        else:
            yield None


def is_local(config: Mapping[str, Any] | None) -> bool:
    """Whether a task's data comes from this machine."""
    if config is None or "class" in config:
        return False
    if "custom_dataset" in config:
        return True
    path = str(config.get("dataset_path", ""))
    remote = "://" in json.dumps(config.get("dataset_kwargs"), default=str)
    return not remote and (path in _BUNDLED or Path(path).exists())
