# SPDX-License-Identifier: Apache-2.0
"""Latency tables: what is read between measured widths, and which tables are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prunec.compiler.model.facts import Facts, facts_from_config
from prunec.compiler.model.layout import LayerSpec
from prunec.compiler.search.latency import (
    Latency,
    LatencyError,
    Times,
    attention_shapes,
    measured_sizes,
    mlp_widths,
)

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SECONDS = st.floats(1e-6, 1.0)


def table(facts: Facts) -> Latency:
    rng = np.random.default_rng(0)

    def times() -> Times:
        return Times(
            rng.random(),
            {shape: rng.random() for shape in attention_shapes(facts)},
            {width: rng.random() for width in mlp_widths(facts, 16)},
        )

    machine = {"hardware": "an abacus", "threads": 1}
    sizes = measured_sizes(facts)
    return Latency(sizes, "bfloat16", 16, machine, 1, 512, 0.1, times(), times())


@given(st.dictionaries(st.integers(1, 400), SECONDS, min_size=1), st.integers(0, 500))
@settings(max_examples=200, deadline=None)
def test_wider_never_costs_less_and_is_nearest_to_what_was_measured(
    mlp: dict[int, float], width: int
) -> None:
    times = Times(0.0, {}, mlp)
    widths = sorted(mlp)
    samples = np.array([mlp[one] for one in widths])
    count = len(widths)
    # Isotonic regression by its min-max formula.
    expected = [
        max(min(samples[a : b + 1].mean() for b in range(i, count)) for a in range(i + 1))
        for i in range(count)
    ]
    assert [times.of_mlp(one) for one in widths] == pytest.approx(expected)
    inside = min(width, widths[-1])
    wanted = float(np.interp(inside, widths, expected)) if inside else 0.0
    assert times.of_mlp(inside) == pytest.approx(wanted)


def test_a_forward_pass_is_a_constant_and_its_sublayers() -> None:
    times = Times(0.5, {(4, 2): 2.0, (2, 1): 1.25}, {16: 1.0, 160: 10.0})
    layout = (
        LayerSpec(4, 2, 16, 160),
        LayerSpec(2, 1, 16, 88),
        LayerSpec(0, 0, 16, 16),
        LayerSpec(2, 1, 16, 0),
    )
    assert times.of_layout(layout) == pytest.approx(0.5 + 2 + 10 + 1.25 + 5.5 + 1 + 1.25)


def test_the_grid_has_the_narrowest_and_the_dense_width_and_only_multiples_between() -> None:
    for ffn, multiple in ((14336, 128), (704, 16), (100, 16), (8, 16), (28672, 1)):
        facts = facts_from_config(CONFIG | {"intermediate_size": ffn})
        widths = mlp_widths(facts, multiple)
        assert widths[0] == min(multiple, ffn) and widths[-1] == ffn
        assert all(width % multiple == 0 for width in widths[:-1])
        assert len(widths) <= 20


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    latency = table(facts_from_config(CONFIG))
    latency.save(tmp_path / "latency.json")
    assert Latency.load(tmp_path / "latency.json") == latency


@pytest.mark.parametrize("change", ["hidden_size", "intermediate_size", "vocab_size"])
def test_a_table_of_another_model_is_refused(change: str) -> None:
    latency = table(facts_from_config(CONFIG))
    other = facts_from_config(CONFIG | {change: 2 * CONFIG[change]})
    with pytest.raises(LatencyError, match=r"another model: its \w+ is \d+, this one's \d+"):
        latency.check(other, "bfloat16", 16)
    deeper = facts_from_config(CONFIG | {"num_hidden_layers": 40})
    latency.check(deeper, "bfloat16", 32)


def test_a_table_of_another_dtype_or_step_or_with_holes_is_refused() -> None:
    facts = facts_from_config(CONFIG)
    latency = table(facts)
    with pytest.raises(LatencyError, match=r"at bfloat16, and model\.dtype is float32"):
        latency.check(facts, "float32", 16)
    with pytest.raises(LatencyError, match=r"multiples of 16, and target\.multiple_of is 8"):
        latency.check(facts, "bfloat16", 8)
    full = latency.decode
    fewer_shapes = replace(full, attention=dict(list(full.attention.items())[:-1]))
    not_dense = replace(full, mlp=dict(list(full.mlp.items())[:-1]))
    for holed in (fewer_shapes, not_dense):
        with pytest.raises(LatencyError, match="lacks shapes"):
            replace(latency, decode=holed).check(facts, "bfloat16", 16)


@given(st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_damaged_table_is_refused_and_never_half_read(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "latency.json"
    latency = table(facts_from_config(CONFIG))
    latency.save(path)
    content = json.loads(path.read_text("utf-8"))
    values: list[Any] = [None, [], {}, "x", [[1]], [["a", "b", "c"]], [[{}, 1]], float("nan"), -1]
    junk = st.sampled_from(values)
    key = data.draw(st.sampled_from(["format", "prefill", "decode", "model", "machine", "more"]))
    if key in ("prefill", "decode") and data.draw(st.booleans()):
        content[key][data.draw(st.sampled_from(["constant", "attention", "mlp"]))] = data.draw(junk)
    elif data.draw(st.booleans()):
        content.pop(key, None)
    else:
        content[key] = data.draw(junk)
    text = json.dumps(content)
    path.write_text(
        text[: data.draw(st.integers(0, len(text)))] if data.draw(st.booleans()) else text
    )
    try:
        found = Latency.load(path)
        found.check(facts_from_config(CONFIG), "bfloat16", 16)
    except LatencyError as error:
        assert "\n" not in error.message
        return
    for times in (found.prefill, found.decode):
        seconds = [times.constant, *times.attention.values(), *times.mlp.values()]
        assert all(0 < one < 1 for one in seconds)
    assert found.machine["hardware"]


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"\xff\xfe", b"[]", b"{}", b"null", b"[" * 100_000):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(LatencyError, match="no latency table"):
            Latency.load(tmp_path / "x.json")
    with pytest.raises(LatencyError, match="cannot be read: no such file"):
        Latency.load(tmp_path / "none.json")
    with pytest.raises(LatencyError, match="cannot be read: is a directory"):
        Latency.load(tmp_path)
