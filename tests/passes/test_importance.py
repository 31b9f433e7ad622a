# SPDX-License-Identifier: Apache-2.0
"""Every metric is held against its formula in numpy, unit by unit, and so is what becomes of it."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch

from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.facts import Facts, facts_from_config
from prunec.compiler.model.layout import LayerSpec, projection_shapes
from prunec.compiler.passes.importance import NEEDS, needs_of
from prunec.compiler.passes.importance.influence import relative_shares
from prunec.compiler.passes.importance.metrics import METRICS
from prunec.compiler.passes.importance.prune import prune_layer
from prunec.compiler.passes.importance.scoring import Scoring, UnitScores, score_layer
from prunec.compiler.passes.importance.selection import select_units
from prunec.compiler.passes.importance.shares import layer_shares
from prunec.compiler.passes.importance.statistics import (
    LayerStatistics,
    Saliency,
    SublayerStatistics,
)
from prunec.compiler.recipe_methods import Metric as MetricName

HEADS, KV, DIM, FFN, HIDDEN = 6, 3, 4, 10, 20
DAMPING = 0.02
Matrices = dict[str, np.ndarray]


@pytest.fixture(params=[int(os.environ["PRUNEC_TEST_SEED"])], ids="seed {}".format)
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    return np.random.default_rng(request.param)


def _facts(model_type: str = "llama", **sizes: int) -> Facts:
    config: dict[str, Any] = {
        "model_type": model_type,
        "hidden_size": HIDDEN,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV,
        "head_dim": DIM,
        "intermediate_size": FFN,
        "vocab_size": 5,
    }
    return facts_from_config(config | sizes)


class Layer:
    """A random layer and text, in numpy: rows of every part, and what text says of them.

    Names of parts as in `weights`; output and down are stored as columns, and held here as rows.
    """

    def __init__(self, rng: np.random.Generator, tokens: int = 50) -> None:
        d_query, d_kv = HEADS * DIM, KV * DIM
        rows = {"query": d_query, "key": d_kv, "value": d_kv, "output": d_query}
        rows |= {"gate": FFN, "up": FFN, "down": FFN}
        self.weights: Matrices = {
            part: rng.standard_normal((count, HIDDEN)) for part, count in rows.items()
        }
        self.inputs: Matrices = {  # [tokens, d_in], with a mean, and of very different sizes
            part: (rng.standard_normal((tokens, rows[part])) + rng.standard_normal(rows[part]))
            * rng.exponential(size=rows[part])
            for part in ("output", "down")
        }
        self.entering: Matrices = {
            part: rng.standard_normal((tokens, HIDDEN)) * rng.exponential(size=HIDDEN)
            for part in ("attention", "mlp")
        }
        self.gradients: Matrices = {  # [windows, rows, hidden]
            part: rng.standard_normal((3, count, HIDDEN)) for part, count in rows.items()
        }

    def tensors(self, fused: bool = False) -> dict[str, torch.Tensor]:
        w = {part: torch.from_numpy(matrix) for part, matrix in self.weights.items()}
        last = {"self_attn.o_proj.weight": w["output"].T, "mlp.down_proj.weight": w["down"].T}
        if fused:
            return last | {
                "self_attn.qkv_proj.weight": torch.cat([w["query"], w["key"], w["value"]]),
                "mlp.gate_up_proj.weight": torch.cat([w["gate"], w["up"]]),
            }
        return last | {
            "self_attn.q_proj.weight": w["query"],
            "self_attn.k_proj.weight": w["key"],
            "self_attn.v_proj.weight": w["value"],
            "mlp.gate_proj.weight": w["gate"],
            "mlp.up_proj.weight": w["up"],
        }

    def statistics(self) -> LayerStatistics:
        def saliency(part: str) -> Saliency:
            w, g = self.weights[part], self.gradients[part]
            first, second = w * g.sum(0), w**2 * (g**2).sum(0)
            elements = (first, abs(first), second, abs(first - second / 2))
            return Saliency(*(torch.from_numpy(one.sum(1)) for one in elements))

        def sublayer(name: str, last: str, *parts: str) -> SublayerStatistics:
            x, h = torch.from_numpy(self.inputs[last]), torch.from_numpy(self.entering[name])
            sums = x.T @ x, x.sum(0), x.square().sum(0), h.square().sum(0)
            return SublayerStatistics(*sums, {part: saliency(part) for part in (*parts, last)})

        return LayerStatistics(
            len(self.inputs["down"]),
            3,
            0.1,
            0.1,
            sublayer("attention", "output", "query", "key", "value"),
            sublayer("mlp", "down", "gate", "up"),
        )


# --- the reference: what a set of rows of a part is worth -----------------------------------------


def _energy(inputs: np.ndarray) -> float:
    """Of inputs [tokens, d_in] the mean channel's, none counted above ten times the median."""
    energy = np.sort((inputs**2).sum(axis=0))
    median = energy[energy > 0][(int((energy > 0).sum()) - 1) // 2]
    return float(np.minimum(energy, 10 * median).mean())


def _worth(metric: str, layer: Layer, part: str, rows: list[int]) -> float | None:
    last = "down" if part in ("gate", "up", "down") else "output"
    w, x, g = layer.weights[part], layer.inputs[last], layer.gradients[part]
    h = layer.entering["mlp" if last == "down" else "attention"]
    gram = x.T @ x
    total = 0.0
    if metric == "obs":
        if part != last:
            return None
        inverse = np.linalg.inv(gram + DAMPING * _energy(x) * np.eye(len(gram)))
        block = np.linalg.inv(inverse[np.ix_(rows, rows)])
        return float(np.trace(w[rows].T @ block @ w[rows]))
    if metric == "reconstruction":
        return None if part != last else float(((x[:, rows] @ w[rows]) ** 2).sum())
    if metric == "fluctuation" and part != last:
        return None
    if metric == "cfsp":
        u = abs(w) * (np.sqrt((x**2).sum(0))[:, None] if part == last else 1)
        share = (u / u.sum(0)).mean(1)[rows].sum()
        return float(share)  # times how active the unit is, which the caller knows
    for row in rows:
        for column in range(HIDDEN):
            weight = w[row, column]
            if metric == "magnitude_l1":
                total += abs(weight)
            if metric == "magnitude_l2":
                total += weight**2
            if metric == "wanda":
                seen = x[:, row] if part == last else h[:, column]
                total += abs(weight) * np.linalg.norm(seen)
            if metric == "fluctuation":
                total += x[:, row].var() * weight**2
            first = weight * g[:, row, column].sum()
            second = weight**2 * (g[:, row, column] ** 2).sum()
            if metric == "taylor_first":
                total += abs(first)
            if metric == "taylor_second":
                total += second
            if metric == "taylor_mixed":
                total += abs(first - second / 2)
        if metric == "taylor_vector":
            total += abs(sum(w[row, c] * g[:, row, c].sum() for c in range(HIDDEN)))
    return float(total)


def _units(part: str, kind: str) -> list[list[int]]:
    """The rows of a part that belong to each head, group or neuron."""
    if kind == "neurons":
        return [[n] for n in range(FFN)]
    size = DIM if part in ("key", "value") else DIM * (HEADS // KV)
    if kind == "heads":
        return [list(range(h * DIM, (h + 1) * DIM)) for h in range(HEADS)]
    return [list(range(k * size, (k + 1) * size)) for k in range(KV)]


PARTS = {
    "heads": ["query", "output"],
    "groups": ["query", "key", "value", "output"],
    "neurons": ["gate", "up", "down"],
}


def _reference(metric: str, layer: Layer, kind: str, aggregation: str) -> np.ndarray:
    last = PARTS[kind][-1]
    table = []
    for part in PARTS[kind]:
        found = [_worth(metric, layer, part, rows) for rows in _units(part, kind)]
        worths = [worth for worth in found if worth is not None]
        if not worths:
            continue
        if metric == "cfsp":
            active = [np.linalg.norm(layer.inputs[last][:, rows]) for rows in _units(last, kind)]
            worths = [float(worth * a) for worth, a in zip(worths, active, strict=True)]
        table.append(worths)
    scores = np.array(table, dtype=float)
    joined = {
        "sum": scores.sum(0),
        "mean": scores.mean(0),
        "max": scores.max(0),
        "product": scores.prod(0),
        "last": scores[-1],
    }[aggregation]
    result: np.ndarray = joined / joined.mean()
    return result


def _scores(layer: Layer, scoring: Scoring, fused: bool = False) -> UnitScores:
    facts = _facts("phi3" if fused else "llama", pad_token_id=0)
    return score_layer(facts, layer.tensors(fused), layer.statistics(), scoring)


# --- tests ----------------------------------------------------------------------------------------


def test_recipes_name_all_metrics_there_are() -> None:
    assert set(METRICS) == set(NEEDS) == set(get_args(MetricName))


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_reads_no_more_than_it_says(metric: str, rng: np.random.Generator) -> None:
    layer, needs = Layer(rng), NEEDS[metric]
    whole = layer.statistics()

    def bared(sums: SublayerStatistics) -> SublayerStatistics:
        return replace(
            sums,
            gram=sums.gram if "gram" in needs else None,
            saliency=sums.saliency if "gradients" in needs else {},
        )

    bare = replace(whole, attention=bared(whole.attention), mlp=bared(whole.mlp))
    found = score_layer(_facts(), layer.tensors(), bare if needs else None, Scoring({metric: 1.0}))
    torch.testing.assert_close(found.neurons, _scores(layer, Scoring({metric: 1.0})).neurons)


@pytest.mark.parametrize("aggregation", ["sum", "mean", "max", "product", "last"])
@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_is_what_its_formula_says(
    metric: str, aggregation: str, rng: np.random.Generator
) -> None:
    layer = Layer(rng)
    found = _scores(layer, Scoring({metric: 0.3}, aggregation, 1.0, DAMPING))
    for kind in PARTS:
        expected = _reference(metric, layer, kind, aggregation)
        actual = getattr(found, kind).numpy()
        np.testing.assert_allclose(actual, expected, rtol=2e-5, err_msg=kind)
        assert len(set(np.round(actual, 9))) == len(actual), "all alike would pass for right"


def test_metrics_are_raised_to_a_power_and_mixed(rng: np.random.Generator) -> None:
    layer = Layer(rng)
    weights = {"wanda": 1.0, "obs": 3.0, "magnitude_l1": 0.0}
    found = _scores(layer, Scoring(weights, "max", 2.0, DAMPING))
    for kind in PARTS:
        wanda, obs = (_reference(metric, layer, kind, "max") for metric in ("wanda", "obs"))
        expected = 0.25 * wanda**2 + 0.75 * obs**2
        np.testing.assert_allclose(getattr(found, kind).numpy(), expected, rtol=5e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_fused_projections_are_scored_like_separate_ones(
    metric: str, rng: np.random.Generator
) -> None:
    layer, scoring = Layer(rng), Scoring({metric: 1.0})
    separate, fused = _scores(layer, scoring), _scores(layer, scoring, fused=True)
    for kind in PARTS:
        torch.testing.assert_close(getattr(fused, kind), getattr(separate, kind))


@pytest.mark.parametrize("metric", METRICS)
def test_what_never_sees_a_signal_is_worth_nothing_or_least(
    metric: str, rng: np.random.Generator
) -> None:
    layer = Layer(rng)
    dead = 3
    for part in ("gate", "up", "down"):
        layer.weights[part][dead] = 0
    layer.inputs["down"][:, dead] = 0
    scores = _scores(layer, Scoring({metric: 1.0})).neurons
    assert torch.isfinite(scores).all()
    assert int(scores.argmin()) == dead and float(scores[dead]) == 0
    # Nothing anywhere: all are worth the same, and no score is no number.
    for matrices in (layer.weights, layer.inputs, layer.entering, layer.gradients):
        for matrix in matrices.values():
            matrix[:] = 0
    assert len(_scores(layer, Scoring({metric: 1.0})).neurons.unique()) == 1


def test_what_a_metric_needs_is_missed_by_name(rng: np.random.Generator) -> None:
    layer = Layer(rng)
    bare = replace(
        layer.statistics(),
        mlp=replace(layer.statistics().mlp, gram=None, saliency={}),
        attention=replace(layer.statistics().attention, gram=None, saliency={}),
    )
    for metric, sentence in (("obs", "Gram matrix"), ("taylor_vector", "gradients")):
        assert needs_of([metric]) == {"gram"} or needs_of([metric]) == {"gradients"}
        with pytest.raises(ModelError, match=f"no {sentence}"):
            score_layer(_facts(), layer.tensors(), bare, Scoring({metric: 1.0}))
    score_layer(_facts(), layer.tensors(), None, Scoring({"magnitude_l1": 1.0}))
    with pytest.raises(ModelError, match="no statistics"):
        score_layer(_facts(), layer.tensors(), None, Scoring({"wanda": 1.0}))


def test_groups_then_heads_inside_them_then_neurons_are_chosen(rng: np.random.Generator) -> None:
    scores = UnitScores(
        heads=torch.tensor([5.0, 1, 2, 2, 9, 8]),
        groups=torch.tensor([2.0, 3.0, 1.0]),
        neurons=torch.tensor([1.0, 0, 1, 5, 1, 1, 0, 0, 2, 0]),
    )
    found = select_units(_facts(), scores, LayerSpec(2, 2, DIM, 4))
    # The heads of the group that goes would have been the best; of equal ones the first stays.
    assert (found.kv_heads, found.query_heads) == ((0, 1), (0, 2))
    assert found.neurons == (0, 2, 3, 8)
    none = select_units(_facts(), scores, LayerSpec(0, 0, DIM, 0))
    assert (none.kv_heads, none.query_heads, none.neurons) == ((), (), ())


@pytest.mark.parametrize("refit", [False, True])
def test_a_layer_is_sliced_to_its_best_units_and_refitted_if_asked(
    refit: bool, rng: np.random.Generator
) -> None:
    layer, facts, spec = Layer(rng), _facts(), LayerSpec(4, 2, DIM, 6)
    scoring = Scoring({"wanda": 1.0})
    cut = prune_layer(
        facts, layer.tensors(), layer.statistics(), scoring, spec, refit=refit, damping=DAMPING
    )
    assert cut.selection == select_units(facts, _scores(layer, scoring), spec)
    assert {k: tuple(t.shape) for k, t in cut.tensors.items()} == projection_shapes(facts, spec)
    heads = [h * DIM + i for h in cut.selection.query_heads for i in range(DIM)]
    for part, name, kept in (
        ("output", "self_attn.o_proj.weight", heads),
        ("down", "mlp.down_proj.weight", list(cut.selection.neurons)),
    ):
        w, x = layer.weights[part], layer.inputs[part]
        expected = w[kept]
        if refit:
            pull = np.sqrt(DAMPING * _energy(x))
            design = np.vstack([x[:, kept], pull * np.eye(len(kept))])
            target = np.vstack([x @ w, pull * w[kept]])
            expected = np.linalg.lstsq(design, target, rcond=None)[0]
        np.testing.assert_allclose(cut.tensors[name].numpy().T, expected, rtol=1e-6, atol=1e-8)


def test_nothing_to_refit_on_is_an_error(rng: np.random.Generator) -> None:
    layer, spec = Layer(rng), LayerSpec(4, 2, DIM, 6)
    bare = replace(layer.statistics(), attention=replace(layer.statistics().attention, gram=None))
    for statistics in (None, bare):
        with pytest.raises(ModelError, match="cannot be refitted"):
            prune_layer(
                _facts(),
                layer.tensors(),
                statistics,
                Scoring({"magnitude_l1": 1.0}),
                spec,
                refit=True,
                damping=DAMPING,
            )


def test_layers_that_turn_the_hidden_states_further_keep_more(rng: np.random.Generator) -> None:
    importance = rng.exponential(size=12).tolist()
    shares = relative_shares(importance, 1.0)
    assert np.argsort(shares).tolist() == np.argsort(importance).tolist()
    assert np.mean(shares) == pytest.approx(1)
    z = (np.array(importance) - np.mean(importance)) / np.std(importance)
    sigmoid = 1 / (1 + np.exp(-z))
    np.testing.assert_allclose(shares, sigmoid / sigmoid.mean())
    # As many tokens as you like: only what differs between layers counts.
    scaled = relative_shares([1e4 * value for value in importance], 1.0)
    np.testing.assert_allclose(scaled, shares)
    half = relative_shares(importance, 0.5)
    np.testing.assert_allclose(half, 1 + 0.5 * (np.array(shares) - 1))
    assert relative_shares(importance, 0.0) == [1.0] * 12
    assert relative_shares([0.3] * 5, 1.0) == [1.0] * 5
    extreme = relative_shares(importance, 10.0)
    assert min(extreme) == 0 and np.mean(extreme) == pytest.approx(1)


def test_shares_follow_a_curve_over_depth(rng: np.random.Generator) -> None:
    importance = rng.exponential(size=9).tolist()
    flat = layer_shares(9, importance, spread=0.5, slope=0, bend=0)
    assert flat == relative_shares(importance, 0.5)
    curved = layer_shares(9, importance, spread=0.5, slope=-0.3, bend=0.8)
    place = np.linspace(-1, 1, 9)
    expected = np.array(flat) * np.exp(-0.3 * place + 0.8 * place**2)
    np.testing.assert_allclose(curved, expected / expected.mean())
    assert layer_shares(1, None, spread=1, slope=2, bend=2) == [1.0]
