# SPDX-License-Identifier: Apache-2.0
"""What metrics read of calibration text, for one or several groups of its windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from prunec.compiler.model.errors import ModelError
from prunec.compiler.passes.importance.collect import collect
from prunec.compiler.passes.importance.statistics import (
    LayerStatistics,
    Saliency,
    SublayerStatistics,
)
from prunec.compiler.plan import Step
from prunec.compiler.steps.context import Context, Progress, Summary
from prunec.compiler.store import Entry, LostResultError

_SUBLAYERS = ("attention", "mlp")
_NUMBERS = ("tokens", "windows", "influence", "angular")
_SUMS = ("gram", "total", "squared", "entering")


def run_statistics(context: Context, step: Step, entry: Entry, progress: Progress) -> Summary:
    """Windows are sorted into classes of equal size by the dense model's loss on them, and each
    class is dealt into groups at random; statistics are collected for every group."""
    ids, params = context.ids(step), step.params
    classes, number, seed = params["loss_quantiles"], params["groups"], params["seed"]
    if len(ids) < classes * number:
        raise ModelError(
            f"{len(ids)} windows of calibration text cannot be dealt into {classes} classes of "
            f"{number} groups",
            hint="raise calibration.tokens, or lower method.calibration.loss_quantiles or groups",
        )

    def by_loss(losses: Tensor) -> list[Tensor]:
        return deal(losses.argsort(stable=True), classes, number, seed)

    info = collect(
        context.decoder,
        ids,
        by_loss if classes > 1 else deal(torch.arange(len(ids)), 1, number, seed),
        StoredStatistics(entry),
        with_gram=params["with_gram"],
        with_gradients=params["with_gradients"],
        on_layer=lambda done, of: progress(done, of, "layers"),
    )
    entry.forget_tensors("gradients-*")
    groups = [
        {"quantile": index // number, "number": index % number, "windows": windows.tolist()}
        for index, windows in enumerate(info.groups)
    ]
    losses = [] if info.losses is None else info.losses.tolist()
    layers = range(context.subject.facts.layers)
    return {
        "token_forwards": info.token_forwards,
        "groups": groups,
        "losses": losses,
        # Of every layer and group: tokens, windows, influence and angular.
        "layers": [load_numbers(entry, layer) for layer in layers],
    }


def deal(windows: Tensor, classes: int, groups: int, seed: int) -> list[Tensor]:
    """Windows in consecutive classes, each dealt into groups at random: those of the first class
    first. Classes, and groups of a class, differ in size by one at most."""
    found = []
    for members in windows.tensor_split(classes):
        order = torch.randperm(len(members), generator=torch.Generator().manual_seed(seed))
        found += [members[order[start::groups]] for start in range(groups)]
    return found


def load_numbers(entry: Entry, layer: int) -> list[dict[str, Any]]:
    """What is one number in a layer's statistics of every group, by name."""
    found = entry.load_json(_name(layer))
    if found is None:
        raise LostResultError(entry, _name(layer))
    groups: list[dict[str, Any]] = found["groups"]
    return groups


def load_statistics(entry: Entry, layer: int, device: torch.device) -> list[LayerStatistics]:
    """A layer's statistics of every group, in the order of the summary's `groups`; Gram matrices
    are float32. LostResultError if they are gone."""
    tensors, _ = entry.require_tensors(_name(layer))

    def sublayer(prefix: str) -> SublayerStatistics:
        found = {
            name.removeprefix(f"{prefix}."): tensor.to(device)
            for name, tensor in tensors.items()
            if name.startswith(f"{prefix}.")
        }
        parts = {name.split(".")[1] for name in found if name.startswith("saliency.")}
        saliency = {
            part: Saliency(*(found[f"saliency.{part}.{one.name}"] for one in fields(Saliency)))
            for part in sorted(parts)
        }
        return SublayerStatistics(
            found.get("gram"), found["total"], found["squared"], found["entering"], saliency
        )

    return [
        LayerStatistics(
            **numbers, attention=sublayer(f"{index}.attention"), mlp=sublayer(f"{index}.mlp")
        )
        for index, numbers in enumerate(load_numbers(entry, layer))
    ]


@dataclass(frozen=True)
class StoredStatistics:
    """The memory of `collect` in the store: a file for each layer, with all groups in it.

    Going backwards also takes the gradients for what is before the last finished layer; they are
    removed when the layer before it is done.
    """

    entry: Entry

    def has(self, layer: int) -> bool:
        numbers = self.entry.load_json(_name(layer))
        return numbers is not None and self.entry.tensor_file(_name(layer)) is not None

    def save(self, layer: int, statistics: Sequence[LayerStatistics]) -> None:
        tensors: dict[str, Tensor] = {}
        for index, group in enumerate(statistics):
            for name in _SUBLAYERS:
                sublayer: SublayerStatistics = getattr(group, name)
                prefix = f"{index}.{name}"
                sums = {one: getattr(sublayer, one) for one in _SUMS}
                tensors |= {f"{prefix}.{k}": t for k, t in sums.items() if t is not None}
                for part, saliency in sublayer.saliency.items():
                    for kind, tensor in vars(saliency).items():
                        tensors[f"{prefix}.saliency.{part}.{kind}"] = tensor
        numbers: list[dict[str, Any]] = [
            {name: getattr(group, name) for name in _NUMBERS} for group in statistics
        ]
        self.entry.forget_tensors(_name(layer))  # never beside numbers of others
        self.entry.save_json(_name(layer), {"groups": numbers})
        self.entry.save_tensors(_name(layer), tensors)
        self.entry.forget_tensors(f"gradients-{layer + 1}")

    def load_gradients(self, layer: int) -> Tensor | None:
        found = self.entry.load_tensors(f"gradients-{layer}")
        return None if found is None else found[0]["outward"]

    def save_gradients(self, layer: int, outward: Tensor) -> None:
        self.entry.save_tensors(f"gradients-{layer}", {"outward": outward})


def _name(layer: int) -> str:
    return f"statistics-{layer}"
