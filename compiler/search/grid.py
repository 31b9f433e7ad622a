# SPDX-License-Identifier: Apache-2.0
"""The grid of sizes that the published search moves on; needs neither weights nor torch.

Query heads are removed one by one and their KV heads kept, so that what a layout weighs follows
from how many heads and neurons stay, whichever they are.

Source: Týr-the-Pruner (arXiv 2503.09657) and its code, except that sizes are whole units: there,
they are rounded down from shares, and their total drifts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import (
    LayerSpec,
    Layout,
    attention_parameters,
    dense_layout,
    mlp_parameters,
    prunable_parameters,
)
from prunec.compiler.search.budget import InfeasibleTargetError

#: Levels on either side of the centre.
SPAN = 4
#: Share of a sublayer that one level means in the first round; halved every round.
FIRST_STEP = 0.125


@dataclass(frozen=True)
class Sizes:
    """Query heads and neurons that stay, for every layer."""

    heads: tuple[int, ...]
    neurons: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Sizes:
        return cls(tuple(data["heads"]), tuple(data["neurons"]))


def step_sizes(facts: Facts, number: int, multiple_of: int) -> tuple[int, int]:
    """(query heads, neurons) between two levels of a round, the first being 1.

    At least one head. Widths are multiples of `multiple_of`, which is thereby the least step too;
    published is 32 neurons, of widths from 11,008 on.
    """
    share = FIRST_STEP / 2 ** (number - 1)
    heads = max(1, round(share * facts.query_heads))
    return heads, multiple_of * max(1, round(share * facts.ffn / multiple_of))


def level_sizes(centre: int, step: int, dense: int) -> dict[int, int]:
    """Units that stay at each level, by the level's number: more sparsity, larger numbers.

    What falls outside 0 … `dense` is cut off there; of levels that then coincide, the one nearest
    to the centre stays.
    """
    found: dict[int, int] = {}
    for level in sorted(range(-SPAN, SPAN + 1), key=abs):
        size = min(max(centre - level * step, 0), dense)
        if size not in found.values():
            found[level] = size
    return found


def kept_parameters(facts: Facts, sizes: Sizes) -> int:
    """Prunable parameters that stay, all KV heads among them."""
    return sum(_attention(facts, heads) for heads in sizes.heads) + sum(
        _mlp(facts, width) for width in sizes.neurons
    )


def first_sizes(facts: Facts, sparsity: float, multiple_of: int) -> Sizes:
    """The same share of heads and neurons, as nearly as whole units allow, in every layer.

    The share is such that `sparsity` of *all* prunable parameters goes, though KV heads stay.
    Raises InfeasibleTargetError.
    """
    layers, dense = facts.layers, prunable_parameters(facts, dense_layout(facts))
    target = round((1 - sparsity) * dense)
    fixed = layers * _attention(facts, 0)
    share = (target - fixed) / (dense - fixed)
    if share < 0:
        raise InfeasibleTargetError(
            f"without its KV heads, at most {1 - fixed / dense:.4g} of the model can go"
        )
    heads = _evenly(round(share * layers * facts.query_heads), layers)
    without_neurons = kept_parameters(facts, Sizes(heads, (0,) * layers))
    wanted = (target - without_neurons) / (neuron_parameters(facts) * multiple_of)
    most = facts.ffn // multiple_of
    steps = min(max(round(wanted), 0), layers * most)
    sizes = Sizes(heads, tuple(multiple_of * n for n in _evenly(steps, layers)))
    if abs(kept_parameters(facts, sizes) - target) > neuron_parameters(facts) * multiple_of:
        raise InfeasibleTargetError(
            f"no number of heads and neurons removes {sparsity:.4g} of the model, "
            f"{multiple_of} neurons at a time"
        )
    return sizes


def parameters_missed(facts: Facts, layout: Layout, sparsity: float) -> int:
    """Prunable parameters that a layout has too few."""
    dense = prunable_parameters(facts, dense_layout(facts))
    return round((1 - sparsity) * dense) - prunable_parameters(facts, layout)


def topped_up(facts: Facts, layout: Layout, sparsity: float, multiple_of: int) -> Layout:
    """The layout with MLPs a little wider, by what KV heads without a query head had held.

    The search takes KV heads to stay; those that nothing reads go all the same, and what they
    weighed is given to the MLPs evenly. The result has the size asked for, to one step of
    `multiple_of` neurons, or its MLPs are all dense or absent.
    """
    step = neuron_parameters(facts) * multiple_of
    steps = round(parameters_missed(facts, layout, sparsity) / step)
    specs = list(layout)
    while steps > 0:
        roomy = [i for i, spec in enumerate(specs) if 0 < spec.ffn <= facts.ffn - multiple_of]
        given = min(steps, len(roomy))
        if not given:
            break
        for index, more in zip(roomy, _evenly(given, len(roomy)), strict=True):
            specs[index] = replace(specs[index], ffn=specs[index].ffn + more * multiple_of)
        steps -= given
    return tuple(specs)


def neuron_parameters(facts: Facts) -> int:
    """What one neuron weighs."""
    return _mlp(facts, 2) - _mlp(facts, 1)


def _attention(facts: Facts, heads: int) -> int:
    return attention_parameters(facts, LayerSpec(heads, facts.kv_heads, facts.head_dim, 0))


def _mlp(facts: Facts, width: int) -> int:
    return mlp_parameters(facts, LayerSpec(0, 0, facts.head_dim, width))


def _evenly(total: int, parts: int) -> tuple[int, ...]:
    """A total in whole parts as equal as can be, the larger ones spread over the depth."""
    return tuple((i + 1) * total // parts - i * total // parts for i in range(parts))
