# SPDX-License-Identifier: Apache-2.0
"""What each layer keeps relative to all others: by what it does to the hidden states, by its depth.

Source: a curve over depth generalises SlimGPT's logarithmic schedule (arXiv 2412.18110) to two
coefficients of either sign.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from prunec.compiler.passes.importance.influence import relative_shares


def layer_shares(
    layers: int, importance: Sequence[float] | None, *, spread: float, slope: float, bend: float
) -> list[float]:
    """Shares with mean 1.

    importance, spread: as of `relative_shares`; None where all layers matter alike
    slope, bend: the logarithm of a share rises by 2 slope from the first layer to the last, and by
        bend from the middle to either end
    """
    shares = [1.0] * layers if importance is None else relative_shares(importance, spread)
    if not slope and not bend:
        return shares
    for layer in range(layers):
        place = 2 * layer / (layers - 1) - 1 if layers > 1 else 0.0
        shares[layer] *= math.exp(slope * place + bend * place**2)
    mean = sum(shares) / layers
    return [share / mean for share in shares]
