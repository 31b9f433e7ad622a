# SPDX-License-Identifier: Apache-2.0
"""Which code an artefact brings, and whether it is ours."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from prunec.compiler.model import modeling
from prunec.exporters import configuration_decilm


def brings_only_our_code(folder: Path) -> bool:
    """Whether every Python file in a folder is, byte for byte, one that this prunec writes there.

    Such a folder may be opened with `trust_remote_code`; of others nothing is run.
    """
    ours = _ours()
    return all(path.read_bytes() == ours.get(path.name) for path in folder.glob("**/*.py"))


@cache
def _ours() -> dict[str, bytes]:
    files = [*Path(modeling.__file__).parent.glob("*.py"), Path(configuration_decilm.__file__)]
    return {path.name: path.read_bytes() for path in files}
