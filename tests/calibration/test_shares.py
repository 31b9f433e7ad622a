# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from prunec.compiler.calibration.shares import shares_of

_WEIGHTS = st.dictionaries(st.text(max_size=3), st.floats(1e-300, 1e300), min_size=1, max_size=6)


@given(_WEIGHTS, st.integers(1, 10_000))
def test_every_window_is_somebodys_and_nobody_goes_without(
    weights: dict[str, float], windows: int
) -> None:
    assume(windows >= len(weights))
    shares = shares_of(weights, windows)
    assert shares.keys() == weights.keys()
    assert sum(shares.values()) == windows and min(shares.values()) >= 1


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 1000))
def test_shares_are_the_weights_to_a_window(weights: list[int], windows: int) -> None:
    named = {str(number): float(weight) for number, weight in enumerate(weights)}
    assume(all(windows * weight >= sum(weights) for weight in weights))  # none is rounded up to one
    for name, share in shares_of(named, windows).items():
        assert abs(share - windows * named[name] / sum(weights)) < 1


def test_the_largest_remainders_are_rounded_up() -> None:
    assert shares_of({"a": 3.3, "b": 3.4, "c": 3.3}, 10) == {"a": 3, "b": 4, "c": 3}
    assert shares_of({"a": 1.0, "b": 1000.0}, 10) == {"a": 1, "b": 9}


def test_too_few_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="1 windows for 2"):
        shares_of({"a": 1.0, "b": 1.0}, 1)
