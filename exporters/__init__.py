# SPDX-License-Identifier: Apache-2.0
"""Export formats by kind. What a format can express is known without importing torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import Layout
from prunec.exporters import hf_rules, onnx_rules, vllm_rules
from prunec.exporters.artefact import Provenance, Written
from prunec.exporters.hf_rules import LayoutKind

if TYPE_CHECKING:
    import torch

    from prunec.exporters.card import Card


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
        *,
        provenance: Provenance,
        **options: Any,
    ) -> None:
        """Write an artefact into an existing, empty folder.

        `options` are those of the recipe's settings that `Exporter.options` names.
        """

    def card(
        self,
        source: Path,
        facts: Facts,
        layout: Layout,
        layout_kind: LayoutKind,
        dtype: torch.dtype,
        provenance: Provenance,
        **options: Any,
    ) -> Card:
        """The artefact's model card, as `export` writes it."""

    def verify(self, destination: Path, layout: Layout, facts: Facts) -> Written:
        """Read an artefact back; ModelError if it is not what the layout says."""


@dataclass(frozen=True, slots=True)
class Exporter:
    """One export format: its rules, which cost nothing, and its module, which imports torch.

    rules: a name for what is legal: layouts that are legal under one name are under the same
    attended: layers that must have attention
    uneven_groups: whether KV heads of a layer may serve different numbers of query heads
    opens_in_transformers: whether transformers loads what is written
    limits: what is wrong with a model for this format; None if nothing
    settle: what a recipe's settings of the format change here
    options: settings that the module is given
    """

    rules: str
    attention_is_legal: Callable[[Facts, LayoutKind, int, int], bool]
    mlp_is_legal: Callable[[LayoutKind, int], bool]
    carried_files: Callable[[Path], list[Path]]
    module: str
    attended: frozenset[int] = frozenset()
    uneven_groups: bool = True
    opens_in_transformers: bool = True
    limits: Callable[[Facts, LayoutKind], str | None] = lambda facts, layout_kind: None
    settle: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda settings: {}
    options: tuple[str, ...] = ("max_shard_bytes",)

    def load(self) -> Writer:
        return cast("Writer", import_module(self.module))


EXPORTERS: Mapping[str, Exporter] = {
    "hf": Exporter(
        rules="hf",
        attention_is_legal=hf_rules.attention_is_legal,
        mlp_is_legal=hf_rules.mlp_is_legal,
        carried_files=hf_rules.carried_files,
        module="prunec.exporters.hf",
    ),
    "vllm": Exporter(
        rules="vllm",
        attention_is_legal=vllm_rules.attention_is_legal,
        mlp_is_legal=vllm_rules.mlp_is_legal,
        carried_files=hf_rules.carried_files,
        module="prunec.exporters.vllm",
        uneven_groups=False,
        limits=vllm_rules.limits,
        settle=vllm_rules.settle,
    ),
    "onnx": Exporter(
        rules="hf",  # it is traced from the same classes
        attention_is_legal=hf_rules.attention_is_legal,
        mlp_is_legal=hf_rules.mlp_is_legal,
        carried_files=hf_rules.carried_files,
        module="prunec.exporters.onnx",
        uneven_groups=False,
        opens_in_transformers=False,
        limits=onnx_rules.limits,
        options=("precision",),
    ),
}


def exporter_for(settings: Mapping[str, Any]) -> Exporter:
    """The format that a recipe's export asks for, narrowed to its settings."""
    exporter = EXPORTERS[settings["kind"]]
    return replace(exporter, **exporter.settle(settings))
