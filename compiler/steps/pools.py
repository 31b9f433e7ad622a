# SPDX-License-Identifier: Apache-2.0
"""The pools of a tuner, as earlier steps have drawn and measured them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from prunec.compiler.passes.importance.statistics import LayerStatistics
from prunec.compiler.plan import Step
from prunec.compiler.steps.context import Context
from prunec.compiler.steps.statistics import load_statistics
from prunec.compiler.store import Entry
from prunec.compiler.tuning.pools import Group, Pool, Pools


def pools_of(context: Context, step: Step) -> Pools:
    """What a step's parameter `pools` names; its inputs have the roles that stand there."""
    device, found = context.decoder.device, []
    for pool in step.params["pools"]:
        role = pool["statistics"]
        entry, summary = context.entry(step, role), context.found(step, role)
        layers: list[list[dict[str, Any]]] = summary["layers"]
        groups = [
            Group(group["quantile"], group["number"], tuple(group["windows"]), numbers["tokens"])
            for group, numbers in zip(summary["groups"], layers[0], strict=True)
        ]
        found.append(
            Pool(
                name=role,
                part=pool["part"],
                length=pool["length"],
                groups=tuple(groups),
                load=partial(_layer_statistics, entry, device),
                turns={
                    kind: [[group[kind] / group["tokens"] for group in layer] for layer in layers]
                    for kind in ("influence", "angular")
                },
                ids=partial(context.ids, step, pool["tokens"]),
            )
        )
    return Pools(found)


def _layer_statistics(entry: Entry, device: torch.device, layer: int) -> list[LayerStatistics]:
    return load_statistics(entry, layer, device)
