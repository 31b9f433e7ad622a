# SPDX-License-Identifier: Apache-2.0
"""Settings that a tuner tried, as people read them.

A setting's name is the tuner's: `exponent`, or `metric.obs` for one weight of several that only
count beside each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prunec.validators.intervals import ABSENT
from prunec.validators.units import count

#: Weights that are read as shares of their sum, by what their names begin with.
_SHARES = {"metric": "metrics", "mixture": "calibration text"}

_WORDS = {
    "first_order": "first-order term",
    "length": "window length",
    "quantile": "loss class, easiest first",
    "groups": "groups of windows",
    "group_seed": "which groups",
    "vector": "weight of taylor_vector",
    "order": "order of single elements",
    "slope": "slope over depth",
    "bend": "bend over depth",
    "attention": "attention over its layer",
}


def in_words(settings: Mapping[str, str | float]) -> dict[str, str]:
    """What was set, by what it is called, in the order of the settings; weights side by side."""
    said: dict[str, str] = {}
    for name, value in settings.items():
        group, _, rest = name.partition(".")
        if rest and group in _SHARES:
            said.setdefault(_SHARES[group], _shares(settings, group))
        else:
            said[name_of(name)] = _said(value)
    return said


def side_by_side(trials: Sequence[Mapping[str, str | float]]) -> list[tuple[str, ...]]:
    """A row a setting: what it is called, and what it is in each trial; every weight on its own,
    as a share of all."""
    names = dict.fromkeys(name for settings in trials for name in settings)
    return [(name_of(name), *(_alone(settings, name) for settings in trials)) for name in names]


def name_of(setting: str) -> str:
    """What a single setting is called: "weight of obs", "window length"."""
    group, _, rest = setting.partition(".")
    if rest and group in _SHARES:
        return f"weight of {rest}"
    return _WORDS.get(setting) or setting.replace(".", ", ").replace("_", " ")


def _alone(settings: Mapping[str, str | float], name: str) -> str:
    group, _, rest = name.partition(".")
    if rest and group in _SHARES:
        weights = _weights(settings, group)
        total = sum(weights.values())
        return _percent(weights.get(rest, 0.0) / total) if total > 0 else ABSENT
    return _said(settings[name]) if name in settings else ABSENT


def _shares(settings: Mapping[str, str | float], group: str) -> str:
    """All weights of a group as shares of their sum, the largest first."""
    weights = _weights(settings, group)
    total = sum(weights.values())
    if not total > 0:
        return "none"
    largest = sorted(weights.items(), key=lambda item: -item[1])
    said = [f"{name} {_percent(weight / total)}" for name, weight in largest if weight > 0]
    return ", ".join(said)


def _weights(settings: Mapping[str, str | float], group: str) -> dict[str, float]:
    return {
        name.partition(".")[2]: float(value)
        for name, value in settings.items()
        if name.startswith(f"{group}.") and not isinstance(value, str)
    }


def _percent(share: float) -> str:
    return "under 1 %" if 0 < share < 0.005 else f"{share:.0%}".replace("%", " %")


def _said(value: str | float) -> str:
    if isinstance(value, str):
        return value
    if value == round(value):
        return f"{value:,.0f}" if abs(value) < 1e6 else count(round(value))
    return f"{value:.3g}"
