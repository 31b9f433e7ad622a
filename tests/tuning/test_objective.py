# SPDX-License-Identifier: Apache-2.0
"""A trial's value is that of the model it stands for, whatever the family and the space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prunec.compiler.model.checkpoint import Checkpoint
from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.facts import Facts
from prunec.compiler.model.folder import facts_from_folder
from prunec.compiler.model.layout import LayerSpec, dense_layout
from prunec.compiler.passes.importance.collect import collect
from prunec.compiler.passes.importance.statistics import LayerStatistics
from prunec.compiler.search.budget import Budget
from prunec.compiler.search.divergence import TeacherDistributions
from prunec.compiler.steps.finalists import place_of_least
from prunec.compiler.tuning.held_out import HeldOut
from prunec.compiler.tuning.objective import Judge
from prunec.compiler.tuning.one_shot import OneShot
from prunec.compiler.tuning.pools import Group, Pool, Pools
from prunec.compiler.tuning.settings import CalibrationChoice, Settings

LENGTH = 16


@dataclass
class InMemory:
    layers: dict[int, Sequence[LayerStatistics]] = field(default_factory=dict)

    def has(self, layer: int) -> bool:
        return layer in self.layers

    def save(self, layer: int, statistics: Sequence[LayerStatistics]) -> None:
        self.layers[layer] = statistics

    def load_gradients(self, layer: int) -> Tensor | None:
        return None

    def save_gradients(self, layer: int, outward: Tensor) -> None:
        pass


def opened(folder: Path) -> Decoder:
    checkpoint = Checkpoint(folder, facts_from_folder(folder))
    return Decoder(checkpoint, torch.float32, torch.device("cpu"))


def prepared(decoder: Decoder, folder: Path, *, seed: int = 0) -> tuple[Judge, Tensor]:
    """A judge of trials on random text, and the logits of the dense model there."""
    generator = torch.Generator().manual_seed(seed)
    facts = decoder.facts
    ids, held_out = (
        torch.randint(3, facts.vocab_size, (count, LENGTH), generator=generator) for count in (8, 6)
    )
    memory = InMemory()
    halves = [torch.arange(0, 4), torch.arange(4, 8)]
    collect(decoder, ids, halves, memory, with_gram=True, with_gradients=True)
    turns = {
        kind: [[getattr(g, kind) / g.tokens for g in memory.layers[i]] for i in range(facts.layers)]
        for kind in ("influence", "angular")
    }
    groups = tuple(Group(0, n, tuple(half.tolist()), 4 * LENGTH) for n, half in enumerate(halves))
    pool = Pool("statistics", "", LENGTH, groups, memory.layers.__getitem__, turns)  # type: ignore[arg-type]
    budget = Budget(facts, 0.5, 8, tied=False, attention_is_legal=whole_or_none(facts))
    one_shot = OneShot(facts, budget, budget.uniform_layout(), Pools([pool]), refit=True)
    dense = run(
        decoder,
        [
            decoder.layer(i, spec, decoder.layer_tensors(i))
            for i, spec in enumerate(dense_layout(facts))
        ],
        held_out,
    )
    teacher = TeacherDistributions.from_logits(dense.float(), facts.vocab_size)
    return Judge(decoder, one_shot, HeldOut(held_out, teacher), folder), dense


def whole_or_none(facts: Facts) -> Callable[[int, int], bool]:
    """Shapes that every family has: heads whole where they are no units."""
    if facts.family.heads_are_units:
        return lambda queries, kv: kv == 0 or queries // kv == facts.query_heads // facts.kv_heads
    return lambda queries, kv: kv in (0, facts.kv_heads) and queries in (0, facts.query_heads)


@torch.no_grad()
def run(decoder: Decoder, layers: Sequence[object], ids: Tensor) -> Tensor:
    hidden = decoder.embed(ids)
    for layer in layers:
        hidden = decoder.feed(layer, decoder.attend(layer, hidden))  # type: ignore[arg-type]
    return decoder.logits(hidden).double()


def pruned_layers(judge: Judge, trial: Settings) -> Sequence[object]:
    """All layers that a trial stands for, each pruned by itself."""
    decoder, shot, layers = judge.decoder, judge.one_shot, []
    for index, spec in enumerate(shot.layout(trial)):
        cut = shot.layer(index, decoder.layer_tensors(index), spec, trial)
        layers.append(decoder.layer(index, spec, cut.tensors))
    return layers


def settings(**changes: object) -> Settings:
    """Of a trial on the second half of the text, unless they say otherwise."""
    plain = Settings(CalibrationChoice(LENGTH, {"": 1.0}, None, (1,)), damping=0.01).as_dict()
    return Settings.from_dict(plain | changes)


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma2", "olmo2"])
def test_the_last_look_is_the_divergence_of_the_whole_model(
    family: str, tiny_family: Callable[..., Path], tmp_path: Path
) -> None:
    decoder = opened(tiny_family(family))
    judge, dense = prepared(decoder, tmp_path)
    dense = dense.log_softmax(-1)
    for trial in (
        settings(first_order=0.3, damping=0.02),
        settings(metrics={"obs": 0.5, "taylor_vector": 0.5}, exponent=0.5, allocation="angular"),
    ):
        looks = list(judge.looks(trial))
        assert [look.whole for look in looks] == [False, False, True]
        assert [look.token_forwards for look in looks] == [2 * LENGTH, 3 * LENGTH, 6 * LENGTH]
        assert not list(tmp_path.iterdir())
        pruned = run(decoder, pruned_layers(judge, trial), judge.held_out.ids).log_softmax(-1)
        divergences = (dense.exp() * (dense - pruned)).sum(-1).mean(-1)
        assert looks[-1].value == pytest.approx(float(divergences.mean()), rel=1e-4)
        assert looks[0].value == pytest.approx(float(divergences[:2].mean()), rel=1e-4)


def test_sublayers_may_go_altogether(tiny_family: Callable[..., Path], tmp_path: Path) -> None:
    decoder = opened(tiny_family("llama"))
    judge, _ = prepared(decoder, tmp_path)
    dense = dense_layout(decoder.facts)[0]
    bare = LayerSpec(0, 0, dense.head_dim, dense.ffn), LayerSpec(4, 2, dense.head_dim, 0), dense
    shot = OneShot(decoder.facts, judge.one_shot.budget, bare, judge.one_shot.pools, refit=True)
    for trial in (settings(), settings(metrics={"wanda": 1.0})):
        (*_, last) = Judge(decoder, shot, judge.held_out, tmp_path).looks(trial)
        assert 0 < last.value < 100


def test_other_text_is_another_trial_and_perplexity_another_objective(
    tiny_family: Callable[..., Path], tmp_path: Path
) -> None:
    decoder = opened(tiny_family("llama"))
    judge, _ = prepared(decoder, tmp_path)

    def last(trial: Settings, held_out: HeldOut = judge.held_out) -> float:
        return list(Judge(decoder, judge.one_shot, held_out, tmp_path).looks(trial))[-1].value

    both = CalibrationChoice(LENGTH, {"": 1.0}, None, (0, 1))
    plain = {"metrics": {"wanda": 1.0}}
    wide = settings(**plain, calibration=Settings(both, 0.01).as_dict()["calibration"])
    assert last(settings(**plain)) != last(wide)
    trial, ids = settings(metrics={"obs": 1.0}), judge.held_out.ids
    log_probs = run(decoder, pruned_layers(judge, trial), ids).log_softmax(-1)[:, :-1]
    loss = -log_probs.gather(-1, ids[:, 1:, None]).mean()
    assert last(trial, HeldOut(ids, None)) == pytest.approx(float(loss.exp()), rel=1e-4)


def test_a_trial_shares_out_what_is_kept_as_it_says(
    tiny_family: Callable[..., Path], tmp_path: Path
) -> None:
    judge, _ = prepared(opened(tiny_family("llama")), tmp_path)
    shot = judge.one_shot
    later = shot.layout(settings(slope=0.5))
    assert later[0].ffn + later[0].kv_heads < later[-1].ffn + later[-1].kv_heads
    outer = shot.layout(settings(bend=1.0))
    assert outer[1].ffn < min(outer[0].ffn, outer[-1].ffn)
    attending = shot.layout(settings(attention=2.0))
    for spec, alike in zip(attending, shot.layout(settings()), strict=True):
        assert spec.kv_heads > alike.kv_heads and spec.ffn < alike.ffn


def test_a_layout_that_cannot_be_had_is_a_trial_that_fails(
    tiny_family: Callable[..., Path], tmp_path: Path
) -> None:
    decoder = opened(tiny_family("llama"))
    judge, _ = prepared(decoder, tmp_path)
    shot = judge.one_shot
    tied = Budget(shot.facts, 0.5, 8, tied=True, attention_is_legal=whole_or_none(shot.facts))
    impossible = OneShot(shot.facts, tied, shot.start, shot.pools, refit=True)
    with pytest.raises(ModelError, match="alike"):
        next(
            Judge(decoder, impossible, judge.held_out, tmp_path).looks(
                settings(metrics={"wanda": 1.0}, allocation="influence")
            )
        )


def test_a_finalist_whose_output_is_no_number_is_never_taken() -> None:
    assert place_of_least([float("nan"), 2.0, 1.0, float("inf"), 1.0]) == 2
    with pytest.raises(ModelError, match="no finalist"):
        place_of_least([float("nan"), float("inf")])
