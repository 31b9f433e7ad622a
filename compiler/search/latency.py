# SPDX-License-Identifier: Apache-2.0
"""What sublayers of every shape take on one machine: the table that `prunec profile` writes.

The time of a forward pass is taken to be a constant (embedding, final norm, head) and the sum over
sublayers, each with its norm and its residual sum. benchmarks/latency.py holds that against models.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from prunec.compiler.model.facts import Facts
from prunec.compiler.model.layout import Layout

Phase = Literal["prefill", "decode"]

_FORMAT = "prunec-latency-1"

#: MLP widths that are measured; between them the time is interpolated.
_WIDTHS = 16


class LatencyError(Exception):
    """A latency table cannot be read, or is not one of the model at hand."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint


@dataclass(frozen=True)
class Times:
    """Seconds that parts of one forward pass take.

    constant: everything but the decoder layers
    attention: a layer's attention by (query heads, KV heads)
    mlp: a layer's MLP by width
    """

    constant: float
    attention: Mapping[tuple[int, int], float]
    mlp: Mapping[int, float]

    def of_attention(self, shape: tuple[int, int]) -> float:
        """Seconds of one layer's attention; KeyError for a shape that was not measured."""
        return self.attention[shape] if shape[1] else 0.0

    def of_mlp(self, width: int) -> float:
        """Seconds of one layer's MLP, linear between the widths that were measured.

        Below the narrowest a width costs as much as that one: what little it does is overhead.
        """
        if width == 0:
            return 0.0
        widths, seconds = self._rising
        above = bisect_left(widths, width)
        if above == 0 or widths[min(above, len(widths) - 1)] == width:
            return seconds[above]
        (low, high), (fast, slow) = widths[above - 1 : above + 1], seconds[above - 1 : above + 1]
        return fast + (slow - fast) * (width - low) / (high - low)

    def of_layout(self, layout: Layout) -> float:
        """Seconds of a whole forward pass."""
        return self.constant + sum(
            self.of_attention((spec.query_heads, spec.kv_heads)) + self.of_mlp(spec.ffn)
            for spec in layout
        )

    @cached_property
    def _rising(self) -> tuple[list[int], list[float]]:
        """Widths and their times, neighbours averaged where the narrower was measured slower.

        Pool-adjacent-violators: the nearest curve, in least squares, that never falls. A search
        that balances sizes relies on it.
        """
        pools: list[list[float]] = []
        for width in sorted(self.mlp):
            pools.append([self.mlp[width]])
            while len(pools) > 1 and _mean(pools[-2]) > _mean(pools[-1]):
                last = pools.pop()
                pools[-1] += last
        return sorted(self.mlp), [_mean(pool) for pool in pools for _ in pool]


@dataclass(frozen=True)
class Latency:
    """Times of one model's sublayers on one machine.

    model: the sizes that they depend on, by name
    multiple_of: what the measured MLP widths are multiples of (but for the dense one)
    machine: hardware, threads and versions, for people to read
    batch, tokens: prefill reads so many sequences of so many tokens at once; decode adds one
        token to each, with `tokens` of them in the KV cache
    spread: interquartile range over median of the repeats, typically
    """

    model: Mapping[str, Any]
    dtype: str
    multiple_of: int
    machine: Mapping[str, Any]
    batch: int
    tokens: int
    spread: float
    prefill: Times
    decode: Times

    def times(self, phase: Phase) -> Times:
        return self.prefill if phase == "prefill" else self.decode

    def check(self, facts: Facts, dtype: str, multiple_of: int) -> None:
        """LatencyError unless this was measured for a model, a dtype and a step of the width."""
        for name, value in measured_sizes(facts).items():
            if self.model.get(name) != value:
                raise LatencyError(
                    f"was measured on another model: its {name} is {self.model.get(name)}, "
                    f"this one's {value}"
                )
        if self.dtype != dtype:
            raise LatencyError(f"was measured at {self.dtype}, and model.dtype is {dtype}")
        if multiple_of % self.multiple_of:
            raise LatencyError(
                f"was measured at MLP widths that are multiples of {self.multiple_of}, "
                f"and target.multiple_of is {multiple_of}"
            )
        for times in (self.prefill, self.decode):
            if facts.ffn not in times.mlp or {*attention_shapes(facts)} - {*times.attention}:
                raise LatencyError("lacks shapes that the model may be cut to")

    def save(self, path: Path) -> None:
        content = {"format": _FORMAT, **vars(self)}
        for phase in ("prefill", "decode"):
            times = self.times(phase)
            content[phase] = {
                "constant": times.constant,
                "attention": [[*shape, seconds] for shape, seconds in times.attention.items()],
                "mlp": [[width, seconds] for width, seconds in times.mlp.items()],
            }
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Latency:
        """LatencyError if the file is not there or is no latency table."""
        try:
            content = json.loads(path.read_bytes())
            if content.pop("format") != _FORMAT:
                raise ValueError
            for name, kind in (("model", dict), ("machine", dict), ("multiple_of", int)):
                if not isinstance(content[name], kind) or not content[name]:
                    raise ValueError
            for phase in ("prefill", "decode"):
                times = content[phase]
                content[phase] = Times(
                    _seconds(times["constant"]),
                    {(int(queries), int(kv)): _seconds(s) for queries, kv, s in times["attention"]},
                    {int(width): _seconds(s) for width, s in times["mlp"]},
                )
            return cls(**content)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise LatencyError(f"cannot be read: {reason}") from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise LatencyError("is no latency table of this version of prunec") from None


def measured_sizes(facts: Facts) -> dict[str, Any]:
    """The sizes of a model that its sublayers' times depend on; how many layers it has is not."""
    return {
        "model_type": facts.family.model_type,
        "hidden_size": facts.hidden_size,
        "query_heads": facts.query_heads,
        "kv_heads": facts.kv_heads,
        "head_dim": facts.head_dim,
        "ffn": facts.ffn,
        "vocab_size": facts.vocab_size,
        "biased": sorted(facts.biased),
    }


def attention_shapes(facts: Facts) -> list[tuple[int, int]]:
    """All (query heads, KV heads) that a layer's attention may be cut to."""
    per_group = facts.query_heads // facts.kv_heads
    return [
        (kv * queries, kv)
        for kv in range(1, facts.kv_heads + 1)
        for queries in range(1, per_group + 1)
    ]


def mlp_widths(facts: Facts, multiple_of: int) -> list[int]:
    """The MLP widths to measure: evenly spaced multiples, the narrowest one and the dense one."""
    step = multiple_of * max(1, round(facts.ffn / (_WIDTHS * multiple_of)))
    narrowest = min(multiple_of, facts.ffn)
    return sorted({narrowest, *range(step, facts.ffn, step), facts.ffn})


def _seconds(value: float) -> float:
    """A measured time; ValueError if it cannot be one."""
    if not 0 < value < math.inf:
        raise ValueError
    return float(value)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
