# SPDX-License-Identifier: Apache-2.0
"""Export formats by kind. What a format can express is known without importing torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import Layout
from prunec.exporters import hf_rules
from prunec.exporters.artefact import Provenance, Written
from prunec.exporters.hf_rules import LayoutKind

if TYPE_CHECKING:
    import torch


class Writer(Protocol):
    """The module of a format: writes an artefact, and reloads what it wrote."""

    def export(
        self,
        destination: Path,
        source: Path,
        facts: Facts,
        layout: Layout,
        layout_kind: LayoutKind,
        tensors: Iterable[tuple[str, torch.Tensor]],
        dtype: torch.dtype,
        max_shard_bytes: int,
        provenance: Provenance,
    ) -> None:
        """Write an artefact into an existing, empty folder."""

    def verify(self, destination: Path, layout: Layout, facts: Facts) -> Written:
        """Read an artefact back; ModelError if it is not what the layout says."""


@dataclass(frozen=True, slots=True)
class Exporter:
    """One export format: its rules, which cost nothing, and its module, which imports torch."""

    attention_is_legal: Callable[[Facts, LayoutKind, int, int], bool]
    mlp_is_legal: Callable[[LayoutKind, int], bool]
    carried_files: Callable[[Path], list[Path]]
    module: str

    def load(self) -> Writer:
        return cast("Writer", import_module(self.module))


EXPORTERS: Mapping[str, Exporter] = {
    "hf": Exporter(
        attention_is_legal=hf_rules.attention_is_legal,
        mlp_is_legal=hf_rules.mlp_is_legal,
        carried_files=hf_rules.carried_files,
        module="prunec.exporters.hf",
    ),
}
