# SPDX-License-Identifier: Apache-2.0
"""How much of each layer is to stay, from how far it turns the hidden states.

Source: block influence from ShortGPT (arXiv 2403.03853); the angle and the sigmoid from CFSP
(arXiv 2409.13199). CFSP divides centred sums over tokens by 10⁴, a constant of its own number of
tokens; here means over tokens are divided by their standard deviation over the layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

Influence = Literal["influence", "angular"]


def relative_shares(importance: Sequence[float], spread: float) -> list[float]:
    """What each layer keeps relative to all others, with mean 1.

    importance: of every layer the mean over tokens of 1 − cosine or of the angle.
    The sigmoid of the standardised importance over its mean; its departure from 1 is multiplied by
    `spread`. No share is below 0.
    """
    values = torch.tensor(importance, dtype=torch.float64)
    deviation = values.std(correction=0)
    # Rounding alone is no difference between layers.
    if deviation <= 1e-12 * values.abs().max():
        return [1.0] * len(values)
    shares = ((values - values.mean()) / deviation).sigmoid()
    shares = (1 + spread * (shares / shares.mean() - 1)).clamp(min=0)
    result: list[float] = (shares / shares.mean()).tolist()
    return result
