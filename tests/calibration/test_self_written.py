# SPDX-License-Identifier: Apache-2.0
"""Text that a model writes, held against the model's own distributions, one text at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from prunec.compiler.calibration.self_written import at_quantile, luck_of, write_windows
from prunec.compiler.calibration.sources import SourceError

TEMPERATURE = 20.0  # so that even a tied head does not say one token again and again
BEGIN, END = 1, 2
FEW = {"vocab": 8}  # so that texts end often


def _model(folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if getattr(model.config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")  # the only kernels that cap scores
    return model


@torch.no_grad()
def _one_by_one(model: Any, start: int, luck: list[float]) -> list[int]:
    """A window of the model's float64 distributions, each text from its first token, no cache."""
    model = model.double()
    window = [start]
    for place in luck[1:]:
        text = window[max(at for at, token in enumerate(window) if token == start) :]
        if text[-1] == END != start:
            window.append(start)
            continue
        logits = model(torch.tensor([text]), use_cache=False).logits[0, -1] / TEMPERATURE
        below = logits.softmax(-1).cumsum(-1)
        window.append(int((below <= place * below[-1]).sum()))
    return window


@pytest.mark.parametrize("start", [BEGIN, END])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_every_token_is_the_models_own_given_its_text_alone(
    family: str, start: int, tiny_family: Callable[..., Path]
) -> None:
    model = _model(tiny_family(family, **FEW))
    luck = torch.stack([luck_of(number, 24, 0, TEMPERATURE) for number in range(4)])
    ids = write_windows(model, start, {END}, luck, TEMPERATURE)
    assert ids.shape == (4, 24) and ids.dtype == torch.int64
    assert (ids[:, 0] == start).all() and int((ids[:, 1:] == start).sum()) > 2
    expected = torch.tensor([_one_by_one(model, start, row) for row in luck.tolist()])
    assert torch.equal(ids, expected)


def test_a_window_does_not_depend_on_those_beside_it(tiny_llama: Callable[..., Path]) -> None:
    model = _model(tiny_llama())
    luck = torch.stack([luck_of(number, 24, 3, 1.0) for number in range(5)])
    together = write_windows(model, BEGIN, {END}, luck, 1.0)
    alone = torch.cat([write_windows(model, BEGIN, {END}, row[None], 1.0) for row in luck])
    assert (together == alone).all(dim=1).sum() >= 4  # but for float error, see above
    assert len({tuple(window) for window in together.tolist()}) == 5


def test_tokens_come_as_often_as_the_temperature_makes_them_likely() -> None:
    logits = torch.tensor([2.0, -torch.inf, 0.5, 1.0]).expand(20_000, 4)
    luck = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    seen = at_quantile(logits, 2.0, luck).bincount(minlength=4) / 20_000
    wanted = torch.tensor([2.0, -torch.inf, 0.5, 1.0]).div(2).softmax(0)
    assert (seen - wanted).abs().max() < 0.015 and seen[1] == 0


@pytest.mark.parametrize("place", [0.0, 1 - 2**-24])
def test_no_quantile_gives_a_token_that_cannot_be(place: float) -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -40.0, -torch.inf]])
    assert int(at_quantile(logits, 1.0, torch.tensor([place]))) in (1, 2)


def test_luck_is_told_apart_by_window_seed_and_temperature() -> None:
    assert torch.equal(luck_of(1, 9, 2, 0.5), luck_of(1, 9, 2, 0.5))
    others = [luck_of(2, 9, 2, 0.5), luck_of(1, 9, 3, 0.5), luck_of(1, 9, 2, 0.6)]
    assert not any(torch.equal(luck_of(1, 9, 2, 0.5), other) for other in others)


def test_a_model_that_gives_no_distribution_is_an_error(tiny_llama: Callable[..., Path]) -> None:
    model = _model(tiny_llama())
    with torch.no_grad():
        model.get_output_embeddings().weight[7] = torch.nan
    with pytest.raises(SourceError, match="NaN"):
        write_windows(model, BEGIN, {END}, torch.rand(2, 4), 1.0)
