# SPDX-License-Identifier: Apache-2.0
"""Search between layouts by gradients: every sublayer is a mixture of sizes, made ever sharper.

Logits over a few sizes of every sublayer descend on the divergence of the mixed model and on an
entropy that weighs more and more; the mean cost stays at what is asked for. What is then most
probable is rounded to layouts of the asked-for size, and these are raced, beside mutants of the
best so far.

Source: DA2S (arXiv 2007.03154) for the entropy that leaves little to lose in rounding. There, a
squared penalty holds the cost; here logits are tilted by cost until it holds, so that there is no
weight of a penalty to be tuned for every model and everything that a cost can count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from prunec.compiler.model.layout import LayerSpec
from prunec.compiler.search.budget import Candidate
from prunec.compiler.search.evolutionary import mutants
from prunec.compiler.search.knapsack import cheapest
from prunec.compiler.search.relaxation import PASSES, Site
from prunec.compiler.search.searcher import Proposal, Settings, State, affordable_offspring
from prunec.compiler.search.space import Space

Numbers = NDArray[np.float64]

#: Sizes of a sublayer that are mixed, on either side of its size at the start.
REACH = 3

#: Share of an allowance that gradients may take, and steps that this is spread over at least,
#: where it lasts; twice as many at most.
RELAXING, STEPS = 0.4, 100

#: Steps after which the descent is handed over, to be saved.
BLOCK = 10

#: Adam's; the rate falls to a tenth.
RATE, MOMENTUM, SQUARES = 0.15, 0.9, 0.99

#: The entropy's weight at the end, as a share of the start's divergence, and the share of the
#: steps before it has any. It is a mean over sublayers, each of which has at most 1.
POLARISING, WARM_UP = 2.0, 0.25

#: Share of a generation that is rounded from the mixture, once there is a best to mutate.
ROUNDED = 0.5
_TRIES = 8  # roundings for every wanted one, each drawn at a higher temperature

#: Of the tilt: where the search for it gives up, how exactly it is found, and the variance of costs
#: below which there is nothing to tilt.
_STEEPEST, _HALVINGS, _FLAT = 1e6, 60, 1e-12


class Mixture(Protocol):
    """The model between layouts, see `Relaxation`."""

    def slopes(self, probabilities: Numbers, windows: Sequence[int]) -> tuple[float, Numbers]: ...

    def release(self) -> None: ...


@dataclass
class Descent:
    """Where the logits are; plain numbers, so that a descent is resumed exactly.

    steps, batch: of the whole descent, a batch in windows; done: steps so far
    logits, mean, square: [sites, most sizes of a site]; the latter two are Adam's
    """

    steps: int
    batch: int
    done: int
    logits: Numbers
    mean: Numbers
    square: Numbers

    def as_dict(self) -> dict[str, Any]:
        rows = ("logits", "mean", "square")
        return vars(self) | {name: getattr(self, name).tolist() for name in rows}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Descent:
        rows = ("logits", "mean", "square")
        return cls(**(data | {name: np.array(data[name]) for name in rows}))


@dataclass(frozen=True)
class LevelRelaxation:
    """Descends, then rounds; without means for a descent it only mutates.

    sites: those of `mixture`, as `sites_around` finds them
    """

    space: Space
    start: Candidate
    sites: Sequence[Site]
    mixture: Mixture

    def propose(
        self, state: State, settings: Settings, most: int, rng: np.random.Generator
    ) -> Proposal:
        saved = state.notes.get("relaxation")
        descent = Descent.from_dict(saved) if saved else self._begin(settings, most)
        affordable = most // (PASSES * max(descent.batch, 1))
        count = min(BLOCK, descent.steps - descent.done, affordable)
        if count > 0:
            for _ in range(count):
                self._step(descent, state, settings)
            state.notes["relaxation"] = descent.as_dict()
            return Proposal([], spent=count * PASSES * descent.batch * settings.length)
        self.mixture.release()
        wanted = affordable_offspring(settings, most)
        share = ROUNDED if state.observations else 1.0
        rounded = round(share * wanted) if descent.done else 0
        roundings = self._roundings(descent.logits, state, settings.step, rounded, rng)
        rest = mutants(self.space, state, settings.step, wanted, rng)
        return Proposal(list(dict.fromkeys([*roundings, *rest]))[:wanted])

    def probabilities(self, logits: Numbers) -> Numbers:
        """Softmax of every site's logits, tilted by cost until the mean cost is the limit.

        Where the limit is out of reach, the cheapest or the dearest sizes.
        """
        steepest = 1.0
        for sign in (1.0, -1.0):
            while steepest < _STEEPEST and sign * self._excess(logits, sign * steepest) > 0:
                steepest *= 4
        low, high = -steepest, steepest
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if self._excess(logits, middle) > 0:
                low = middle
            else:
                high = middle
        return self._softmax(logits - high * self._costs)

    def through_probabilities(self, slopes: Numbers, probabilities: Numbers) -> Numbers:
        """Derivatives in the logits, given those in the probabilities: the tilt moves with them."""
        slopes = _through_softmax(slopes, probabilities)
        cost_slopes = _through_softmax(self._costs, probabilities)
        steepness = float((cost_slopes * self._costs).sum())
        if steepness < _FLAT:  # out of reach, or all of one cost
            return slopes
        return slopes - cost_slopes * float((slopes * self._costs).sum()) / steepness

    def _begin(self, settings: Settings, most: int) -> Descent:
        windows = int(RELAXING * most) // PASSES
        batch = min(max(1, windows // STEPS), settings.windows)
        choices = any(len(site.sizes) > 1 for site in self.sites)
        steps = min(windows // batch, 2 * STEPS) if choices else 0
        zeros = np.zeros(self._exists.shape)
        return Descent(steps, batch, 0, zeros, zeros, zeros)

    def _step(self, descent: Descent, state: State, settings: Settings) -> None:
        """One step of Adam; batches go through the windows in turn, each time in another order."""
        # All batches are full: other windows are left over every time.
        turn, number = divmod(descent.done, settings.windows // descent.batch)
        # No generation has a number below 0 to draw from.
        order = np.random.default_rng([*settings.seed, 0, turn]).permutation(settings.windows)
        windows = order[number * descent.batch : (number + 1) * descent.batch].tolist()
        probabilities = self.probabilities(descent.logits)
        divergence, slopes = self.mixture.slopes(probabilities, windows)
        descent.done += 1
        if not (np.isfinite(divergence) and np.isfinite(slopes).all()):
            return  # an overflow does not tell where to go
        done = descent.done / descent.steps
        ramp = max(0.0, done - WARM_UP) / (1 - WARM_UP)
        weight = POLARISING * ramp * float(np.mean(state.start_scores))
        slopes = slopes + weight * self._entropy_slopes(probabilities)
        slopes = self.through_probabilities(slopes, probabilities)
        descent.mean = MOMENTUM * descent.mean + (1 - MOMENTUM) * slopes
        descent.square = SQUARES * descent.square + (1 - SQUARES) * slopes**2
        # Both start at zero, and are too small at first.
        mean = descent.mean / (1 - MOMENTUM**descent.done)
        square = descent.square / (1 - SQUARES**descent.done)
        rate = RATE * (1 - 0.9 * done)
        descent.logits = descent.logits - rate * mean / (np.sqrt(square) + 1e-12)

    def _entropy_slopes(self, probabilities: Numbers) -> Numbers:
        """Derivatives of the mean entropy of sites, each as a share of what it can be."""
        most = np.log(np.maximum(self._exists.sum(axis=1, keepdims=True), 2))
        slopes = -(np.log(np.maximum(probabilities, 1e-30)) + 1) / most / len(self.sites)
        return np.where(self._exists, slopes, 0.0)

    def _roundings(
        self, logits: Numbers, state: State, step: int, count: int, rng: np.random.Generator
    ) -> list[Candidate]:
        """The most probable layout of the asked-for size, then draws, the hotter the more fail."""
        surprises = -np.log(np.maximum(self.probabilities(logits), 1e-30))
        found: dict[Candidate, None] = {}
        for attempt in range(_TRIES * count):
            if len(found) == count:
                break
            values = surprises
            if attempt:  # the most probable after Gumbel noise is a draw
                values = surprises / (1 + attempt / count) - rng.gumbel(size=surprises.shape)
            rounded = self._rounded(values)
            if rounded is not None:
                rounded = self.space.balanced(rounded, step, rng)
            if rounded is not None and hash(rounded) not in state.tried:
                found[rounded] = None
        return list(found)

    def _rounded(self, values: Numbers) -> Candidate | None:
        """The layout of about the asked-for size whose sum of values is least."""
        least = [float(site.costs.min()) for site in self.sites]
        costs = [site.costs - low for site, low in zip(self.sites, least, strict=True)]
        options = [row[: len(site.sizes)] for site, row in zip(self.sites, values, strict=True)]
        picked = cheapest(costs, options, self.space.budget.limit - sum(least))
        if picked is None:
            return None
        shapes, widths = list(self.start.shapes), list(self.start.widths)
        for site, choice in zip(self.sites, picked, strict=True):
            spec = site.sizes[choice]
            for layer in site.layers:
                if site.attention:
                    shapes[layer] = (spec.query_heads, spec.kv_heads)
                else:
                    widths[layer] = spec.ffn
        return Candidate(tuple(shapes), tuple(widths))

    @cached_property
    def _exists(self) -> NDArray[np.bool_]:
        """[sites, most sizes of a site]: whether a site has so many sizes."""
        counts = np.array([len(site.sizes) for site in self.sites])
        return np.arange(counts.max()) < counts[:, None]

    @cached_property
    def _costs(self) -> Numbers:
        """[sites, most sizes of a site]: costs less an even share of the limit.

        In even shares of what the dense model costs, so that all costs are of about one size.
        """
        budget, sites = self.space.budget, len(self.sites)
        costs = np.zeros(self._exists.shape)
        for row, site in zip(costs, self.sites, strict=True):
            row[: len(site.sizes)] = (site.costs * sites - budget.limit) / budget.dense_size
        return costs

    def _excess(self, logits: Numbers, tilt: float) -> float:
        """Mean cost beyond the limit; falls with the tilt."""
        return float((self._softmax(logits - tilt * self._costs) * self._costs).sum())

    def _softmax(self, logits: Numbers) -> Numbers:
        logits = np.where(self._exists, logits, -np.inf)
        powers: Numbers = np.exp(logits - logits.max(axis=1, keepdims=True))
        powers /= powers.sum(axis=1, keepdims=True)
        return powers


def sites_around(space: Space, start: Candidate, step: int) -> list[Site]:
    """What is mixed: attention along its path, MLPs in steps of so many neurons.

    MLPs that cost nothing stay as they are.
    """
    budget, found = space.budget, []
    for group in space.groups:
        layer = group[0]
        reach = range(-REACH, REACH + 1)
        moved = [space.moved_attention(start, group, move) for move in reach]
        shapes = dict.fromkeys(candidate.shapes[layer] for candidate in moved)
        reach = range(1) if budget.mlp_is_free else reach
        moved = [space.moved_mlp(start, group, move * step) for move in reach]
        widths = dict.fromkeys(candidate.widths[layer] for candidate in moved)
        head_dim, layers = budget.facts.head_dim, len(group)
        found += [
            Site(
                group,
                True,
                tuple(LayerSpec(*shape, head_dim, 0) for shape in shapes),
                np.array([layers * budget.attention_size(shape) for shape in shapes]),
            ),
            Site(
                group,
                False,
                tuple(LayerSpec(0, 0, head_dim, width) for width in widths),
                np.array([layers * budget.mlp_size(width) for width in widths]),
            ),
        ]
    return found


def _through_softmax(slopes: Numbers, probabilities: Numbers) -> Numbers:
    """Derivatives in the logits, given those in the probabilities."""
    mean: Numbers = (probabilities * slopes).sum(axis=1, keepdims=True)
    return probabilities * (slopes - mean)
