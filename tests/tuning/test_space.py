# SPDX-License-Identifier: Apache-2.0
"""What a tuner may choose, and what its choices mean."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pytest

from prunec.compiler.tuning.settings import Settings
from prunec.compiler.tuning.space import Choice, Interval, Point, TuningSpace

WIDE = TuningSpace(
    weights={"code": 3.0, "prose": 1.0},
    mixture=True,
    lengths=(128, 256),
    loss_quantiles=3,
    groups=4,
    damping=(0.01, 0.01),
    metrics=("obs", "wanda", "taylor_first"),
    aggregations=("sum", "max"),
    exponents=(0.5, 1.0),
    allocations=("uniform", "angular"),
    slope=(-1.0, 1.0),
    bend=(0.0, 0.5),
    attention=(0.5, 2.0),
)
SOLVER = TuningSpace(
    weights={"": 1.0},
    mixture=True,
    lengths=(256,),
    loss_quantiles=1,
    groups=1,
    damping=(0.001, 0.1),
    first_order=(0.0, 1.0),
)
FAITHFUL = replace(
    SOLVER,
    damping=(0.01, 0.01),
    first_order=(0.0, 0.0),
    metrics=("taylor_vector", "taylor_first", "taylor_second", "taylor_mixed"),
    aggregations=("sum", "product", "max", "last"),
    exponents=(0.5, 1.0, 2.0),
    faithful=True,
)


def draw(space: TuningSpace, seed: int) -> Point:
    rng = random.Random(seed)
    return {
        name: rng.choice(dimension.values)
        if isinstance(dimension, Choice)
        else rng.uniform(dimension.low, dimension.high)
        for name, dimension in space.dimensions().items()
    }


@pytest.mark.parametrize("space", [WIDE, SOLVER, FAITHFUL], ids=["wide", "solver", "faithful"])
def test_spaces_and_settings_survive_json(space: TuningSpace) -> None:
    assert TuningSpace.from_dict(json.loads(json.dumps(space.as_dict()))) == space
    for seed in range(20):
        settings = space.settings(draw(space, seed))
        plain = json.loads(json.dumps(settings.as_dict()))
        assert Settings.from_dict(plain) == settings
        assert Settings.from_dict(plain).as_dict() == plain


def test_only_what_can_be_chosen_is_a_dimension() -> None:
    assert SOLVER.dimensions() == {
        "first_order": Interval(0.0, 1.0),
        "damping": Interval(0.001, 0.1, log=True),
    }
    assert set(FAITHFUL.dimensions()) == {"vector", "order", "aggregation", "exponent"}
    assert not {"damping", "first_order"} & set(WIDE.dimensions())
    given = replace(WIDE, mixture=False)
    assert not any(name.startswith("mixture") for name in given.dimensions())
    assert given.settings(draw(given, 0)).calibration.weights == {"code": 0.75, "prose": 0.25}


def test_weights_are_shares_and_those_of_nothing_are_left_out() -> None:
    point = dict(draw(WIDE, 1)) | {"metric.obs": 1.0, "metric.wanda": 0.5, "metric.taylor_first": 0}
    metrics = WIDE.settings(point).metrics
    assert metrics == {
        "obs": pytest.approx(8 / 9, abs=1e-4),
        "wanda": pytest.approx(1 / 9, abs=1e-4),
    }
    none = WIDE.settings(point | {f"metric.{name}": 0.0 for name in WIDE.metrics})
    assert none.metrics == dict.fromkeys(sorted(WIDE.metrics), pytest.approx(1 / 3, abs=1e-4))


def test_what_has_no_effect_is_not_in_the_settings() -> None:
    point = dict(draw(WIDE, 2)) | {"allocation": "uniform", "groups": 4}
    same = point | {"spread": 0.3, "group_seed": 3}
    other = point | {"spread": 3.0, "group_seed": 1}
    assert WIDE.settings(same) == WIDE.settings(other)
    different = {"allocation": "angular"}
    assert WIDE.settings(same | different) != WIDE.settings(other | different)


def test_groups_of_a_number_are_all_reached_and_each_alone() -> None:
    chosen = {
        WIDE.settings(dict(draw(WIDE, 3)) | {"groups": 1, "group_seed": first}).calibration.groups
        for first in range(4)
    }
    assert chosen == {(0,), (1,), (2,), (3,)}


def test_faithful_settings_mix_one_order_of_elements_with_whole_vectors() -> None:
    point: Point = {"vector": 0.25, "order": "second", "aggregation": "product", "exponent": 2.0}
    settings = FAITHFUL.settings(point)
    assert settings.metrics == {"taylor_vector": 0.25, "taylor_second": 0.75}
    assert (settings.aggregation, settings.exponent, settings.allocation) == (
        "product",
        2.0,
        "uniform",
    )


def test_trials_begin_with_each_metric_by_itself_on_all_the_text() -> None:
    starts = [WIDE.settings(point) for point in WIDE.starts()]
    assert [list(start.metrics) for start in starts] == [["obs"], ["wanda"], ["taylor_first"]]
    for start in starts:
        assert start.calibration.quantile is None
        assert start.calibration.groups == (0, 1, 2, 3)
        assert start.calibration.weights == pytest.approx({"code": 0.75, "prose": 0.25})
        assert start.exponent == 1.0 and start.all_alike
    for space in (WIDE, SOLVER, FAITHFUL):
        for point in space.starts():
            assert set(point) == set(space.dimensions())
    assert SOLVER.settings(SOLVER.starts()[0]).damping == 0.01


def test_reports_name_what_was_chosen_and_nothing_else() -> None:
    point = dict(draw(WIDE, 4)) | {"quantile": 1, "groups": 2, "group_seed": 3, "exponent": 0.5}
    said = WIDE.described(WIDE.settings(point))
    assert said["quantile"] == "2 of 3"
    assert (said["groups"], said["group_seed"]) == ("2 of 4", "1 and 4")
    weights = [float(value) for name, value in said.items() if name.startswith("metric.")]
    assert math.isclose(sum(weights), 1, abs_tol=1e-3)
    assert set(SOLVER.described(SOLVER.settings(draw(SOLVER, 0)))) == {"first_order", "damping"}
