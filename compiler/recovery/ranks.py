# SPDX-License-Identifier: Apache-2.0
"""How much rank each layer's adapters get.

Source: CFSP's importance-guided LoRA: in proportion to the angle by which a layer turns the hidden
states.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prunec.compiler.recovery.objective import layers_of


@torch.no_grad()
def angular_scores(model: Any, ids: Tensor) -> list[float]:
    """Of every layer, the mean over tokens of the angle between the hidden states before and
    behind it, over π. ids: [windows, length]"""
    totals: dict[int, float] = {}

    def hook_of(index: int) -> Any:
        def hook(_module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            behind = output[0] if isinstance(output, tuple) else output
            angles = angle(before, behind)
            totals[index] = totals.get(index, 0.0) + float(angles.double().mean())

        return hook

    layers = layers_of(model)
    hooks = [
        layer.register_forward_hook(hook_of(index), with_kwargs=True)
        for index, layer in enumerate(layers)
    ]
    try:
        for window in ids:
            model(input_ids=window[None].to(model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [totals[index] / len(ids) for index in range(len(layers))]


def angle(before: Tensor, behind: Tensor) -> Tensor:
    """[windows, length]: the angle between hidden states over π, computed in float64."""
    cosine = torch.nn.functional.cosine_similarity(before.double(), behind.double(), dim=-1)
    return torch.arccos(cosine.clamp(-1, 1)) / math.pi


def ranks_by_importance(rank: int, importance: Sequence[float]) -> list[int]:
    """Ranks in proportion to importance, about `rank` on average, each at least 1."""
    mean = sum(importance) / len(importance)
    if not mean:
        return [rank] * len(importance)
    return [max(1, round(rank * score / mean)) for score in importance]
