# SPDX-License-Identifier: Apache-2.0
"""Numbers as people read them: counts, bytes, durations, measurements that may not be finite."""

from __future__ import annotations

import math

NOT_FINITE = "not finite"


def count(value: int) -> str:
    """6_950_000 → "6.95 M"."""
    return _scaled(value, 1000, ("", " k", " M", " B", " T"))


def size(value: int) -> str:
    """13_900_000 → "13.3 MiB"."""
    return _scaled(value, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def duration(seconds: float) -> str:
    """252.3 → "4 min 12 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def number(value: float | None, decimals: int = 2) -> str:
    """1234.5 → "1,234.50"; None and what is not finite → "not finite"."""
    if value is None or not math.isfinite(value):
        return NOT_FINITE
    return f"{value:,.{decimals}f}"


def printable(text: str) -> str:
    """Text without control characters, which a terminal would obey: newlines and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _scaled(value: int, step: int, units: tuple[str, ...]) -> str:
    if value < step:
        return f"{value}{units[0]}"
    scaled, power = float(value), 0
    while round(scaled) >= step and power < len(units) - 1:
        scaled, power = scaled / step, power + 1
    decimals = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
    return f"{scaled:.{decimals}f}{units[power]}"
