# SPDX-License-Identifier: Apache-2.0
"""Statistics of calibration text are held against transformers' own models in float64.

The reference runs the whole model, listens to what reaches its projections, and differentiates the
loss of every window by autograd.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from prunec.compiler.model.checkpoint import Checkpoint
from prunec.compiler.model.decoder import Decoder
from prunec.compiler.model.families import FAMILIES
from prunec.compiler.model.folder import facts_from_folder
from prunec.compiler.model.layout import dense_layout, rows_of
from prunec.compiler.model.placement import ROOMY, Placement
from prunec.compiler.passes.importance import collect as collect_module
from prunec.compiler.passes.importance.collect import CollectedInfo, collect
from prunec.compiler.passes.importance.statistics import LayerStatistics, mixed
from prunec.compiler.steps.statistics import StoredStatistics, deal, load_statistics
from prunec.compiler.store import Entry

SMALL = {"layers": 2, "hidden": 32, "head_dim": 8, "ffn": 24}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True, params=[int(os.environ["PRUNEC_TEST_SEED"])], ids="seed {}".format)
def _fresh_numbers(request: pytest.FixtureRequest) -> None:
    torch.manual_seed(request.param)


def _decoder(
    folder: Path, dtype: torch.dtype = torch.float32, placement: Placement = ROOMY
) -> Decoder:
    return Decoder(Checkpoint(folder, facts_from_folder(folder)), dtype, CPU, placement)


def _collect(
    folder: Path,
    ids: Tensor,
    entry: Entry,
    groups: Sequence[Tensor] | Callable[[Tensor], Sequence[Tensor]],
    *,
    gradients: bool,
    gram: bool = True,
    placement: Placement = ROOMY,
) -> tuple[CollectedInfo, list[list[LayerStatistics]]]:
    memory = StoredStatistics(entry)
    decoder = _decoder(folder, placement=placement)
    info = collect(decoder, ids, groups, memory, with_gram=gram, with_gradients=gradients)
    layers = range(decoder.facts.layers)
    return info, [load_statistics(entry, layer, CPU) for layer in layers]


# --- the reference --------------------------------------------------------------------------------


class Reference:
    """The whole model in float64; everything is summed over some of the windows."""

    def __init__(self, folder: Path) -> None:
        self.family = facts_from_folder(folder).family
        self.facts = facts_from_folder(folder)
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float64, attn_implementation="eager"
        ).eval()
        self.known: dict[tuple[int, ...], dict[str, Tensor]] = {}  # gradients by window

    def losses(self, ids: Tensor) -> list[Tensor]:
        logits = [self.model(row[None]).logits[0, :-1].double() for row in ids]
        pairs = zip(logits, ids[:, 1:], strict=True)
        return [-one.log_softmax(-1).gather(1, row[:, None]).mean() for one, row in pairs]

    def inputs(self, ids: Tensor, layer: int, name: str) -> Tensor:
        seen: list[Tensor] = []
        module = self.model.get_submodule(self.family.in_layer(layer, name))
        hook = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
        self.model(ids)
        hook.remove()
        inputs: Tensor = seen[0].flatten(0, 1)
        return inputs

    def cosines(self, ids: Tensor, layer: int) -> Tensor:
        states: list[Tensor] = []
        module = self.model.model.layers[layer]
        hook = module.register_forward_hook(lambda _, a, out: states.extend([a[0], out]))
        self.model(ids)
        hook.remove()
        before, behind = (state.detach().flatten(0, 1) for state in states)
        cosines: Tensor = (before * behind).sum(1) / (before.norm(dim=1) * behind.norm(dim=1))
        return cosines

    def gradients(self, ids: Tensor, layer: int, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """(weight, summed gradient, summed squares of the windows' own gradients)."""
        names = [name for name, p in self.model.named_parameters() if p.dim() == 2]
        weights = [self.model.get_parameter(name) for name in names]
        for row in ids:
            if tuple(row.tolist()) not in self.known:
                grads = torch.autograd.grad(self.losses(row[None])[0], weights)
                self.known[tuple(row.tolist())] = dict(zip(names, grads, strict=True))
        full = self.family.in_layer(layer, f"{name}.weight")
        each = torch.stack([self.known[tuple(row.tolist())][full] for row in ids])
        weight = self.model.get_parameter(full).detach()
        return weight, each.sum(0), (each**2).sum(0)


def _close(actual: Tensor, expected: Tensor, tolerance: float = 2e-4) -> None:
    scale = float(expected.abs().max())
    assert scale > 0
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance * scale)


def _check_layer(
    reference: Reference, found: LayerStatistics, ids: Tensor, layer: int, *, gradients: bool
) -> None:
    family, rows = reference.family, rows_of(dense_layout(reference.facts)[0])
    cosines = reference.cosines(ids, layer)
    assert (found.tokens, found.windows) == (ids.numel(), len(ids))
    assert found.influence == pytest.approx(float((1 - cosines).sum()), rel=1e-4)
    assert found.angular == pytest.approx(float(cosines.acos().sum() / torch.pi), rel=1e-4)
    for sums, inputs, last in (
        (found.attention, family.attention_inputs, family.output),
        (found.mlp, family.mlp_inputs, family.down),
    ):
        x = reference.inputs(ids, layer, last)
        assert sums.gram is not None
        _close(sums.gram, x.T @ x)
        _close(sums.total, x.sum(0))
        _close(sums.squared, (x**2).sum(0))
        _close(sums.entering, (reference.inputs(ids, layer, next(iter(inputs))) ** 2).sum(0))
        if not gradients:
            assert not sums.saliency
            continue
        for name, parts in [*inputs.items(), (last, ("output" if "attn" in last else "down",))]:
            part_rows = {str(part): count for part, count in rows.items()}
            w, g, f = reference.gradients(ids, layer, name)
            dim = 0 if name == last else 1
            sizes = [len(w.T)] if name == last else [part_rows[part] for part in parts]
            for kind, element in (
                ("signed", w * g),
                ("absolute", (w * g).abs()),
                ("squared", w**2 * f),
                ("mixed", (w * g - w**2 * f / 2).abs()),
            ):
                expected = element.sum(dim).split(sizes)
                for part, vectors in zip(parts, expected, strict=True):
                    _close(getattr(sums.saliency[part], kind), vectors)


# --- tests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", FAMILIES)
def test_sums_and_gradients_are_those_of_the_whole_model(
    model_type: str,
    tiny_family: Callable[..., Path],
    tmp_path: Path,
) -> None:
    options = {"layers": 2, "ffn": 24, "biased": model_type in ("llama", "qwen2")}
    folder = tiny_family(model_type, **options)
    ids = torch.randint(0, 300, (4, 10))
    groups = [torch.tensor([3, 0, 1]), torch.tensor([2])]
    # Several batches, hidden states in files, the vocabulary read when it is needed.
    small = Placement(
        batch_tokens=20, vocabulary_stays=False, states_in_file=True, scratch=tmp_path
    )
    info, layers = _collect(folder, ids, Entry(tmp_path), groups, gradients=True, placement=small)
    reference = Reference(folder)
    assert info.losses is not None
    _close(info.losses, torch.stack(reference.losses(ids)).detach())
    assert info.token_forwards == 4 * ids.numel()
    for layer, statistics in enumerate(layers):
        for group, found in zip(groups, statistics, strict=True):
            _check_layer(reference, found, ids[group.sort().values], layer, gradients=True)


@pytest.mark.parametrize("model_type", ["llama", "olmo2"])
def test_without_gradients_the_same_sums_take_a_pass_or_two(
    model_type: str, tiny_family: Callable[..., Path], tmp_path: Path
) -> None:
    folder, ids = tiny_family(model_type, layers=2, ffn=24), torch.randint(0, 300, (5, 12))

    def by_loss(losses: Tensor) -> list[Tensor]:
        return list(losses.argsort().split([2, 3]))

    known, _ = _collect(folder, ids, Entry(tmp_path / "1"), [torch.arange(5)], gradients=False)
    assert known.losses is None and known.token_forwards == ids.numel()
    info, layers = _collect(folder, ids, Entry(tmp_path / "2"), by_loss, gradients=False)
    assert info.token_forwards == 2 * ids.numel()
    reference = Reference(folder)
    losses = torch.stack(reference.losses(ids)).detach()
    assert info.losses is not None
    _close(info.losses, losses)
    for group, expected in zip(info.groups, by_loss(losses), strict=True):
        assert group.tolist() == expected.sort().values.tolist()
    for layer, statistics in enumerate(layers):
        for group, found in zip(info.groups, statistics, strict=True):
            _check_layer(reference, found, ids[group], layer, gradients=False)


def test_a_mixture_weighs_groups_by_what_they_hold_a_token(
    tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    folder, ids = tiny_llama(**SMALL), torch.randint(0, 300, (6, 12))
    groups = [torch.tensor([0, 1, 2]), torch.tensor([3]), torch.tensor([4, 5])]
    _, layers = _collect(folder, ids, Entry(tmp_path / "1"), groups, gradients=True)
    whole = [torch.tensor([0, 1, 2, 4, 5])]
    _, together = _collect(folder, ids, Entry(tmp_path / "2"), whole, gradients=True)
    for parts, (joined,) in zip(layers, together, strict=True):
        # By their tokens: as if they were one group, in all that is linear in the windows.
        found = mixed(parts, [3.0, 0.0, 2.0])
        assert (found.tokens, found.windows) == (60, 5)
        assert found.influence == pytest.approx(joined.influence)
        assert found.mlp.gram is not None and joined.mlp.gram is not None
        _close(found.mlp.gram, joined.mlp.gram.double(), 1e-6)
        _close(found.mlp.saliency["up"].signed, joined.mlp.saliency["up"].signed, 1e-5)
        _close(found.mlp.saliency["down"].squared, joined.mlp.saliency["down"].squared, 1e-5)
        # By other weights: a mean of means.
        a, b = parts[0].attention.squared / 36, parts[1].attention.squared / 12
        _close(mixed(parts, [1.0, 3.0, 0.0]).attention.squared / 48, (a + 3 * b) / 4, 1e-9)


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("finished", [1, 2])
def test_collecting_that_was_stopped_goes_on_to_the_same_bits(
    gradients: bool,
    finished: int,
    tiny_llama: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(collect_module, "STATE_BYTES", 0)  # hidden states in a file
    placement = Placement(scratch=tmp_path)
    folder, ids = tiny_llama(**SMALL | {"layers": 3}), torch.randint(0, 300, (5, 12))
    groups = [torch.tensor([0, 1, 4]), torch.tensor([2, 3])]
    _, whole = _collect(
        folder, ids, Entry(tmp_path / "1"), groups, gradients=gradients, placement=placement
    )
    save = StoredStatistics.save
    saved: list[int] = []

    def killed(self: StoredStatistics, layer: int, found: Sequence[LayerStatistics]) -> None:
        if len(saved) == finished:
            raise _KilledError
        save(self, layer, found)
        saved.append(layer)

    entry = Entry(tmp_path / "2")
    with monkeypatch.context() as patch, pytest.raises(_KilledError):
        patch.setattr(StoredStatistics, "save", killed)
        _collect(folder, ids, entry, groups, gradients=gradients, placement=placement)
    again: list[int] = []

    def noted(self: StoredStatistics, layer: int, found: Sequence[LayerStatistics]) -> None:
        again.append(layer)
        save(self, layer, found)

    monkeypatch.setattr(StoredStatistics, "save", noted)
    _, layers = _collect(folder, ids, entry, groups, gradients=gradients, placement=placement)
    assert sorted(saved + again) == [0, 1, 2]
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2"}  # the files are gone
    for one, other in zip(layers, whole, strict=True):
        for found, expected in zip(one, other, strict=True):
            assert found.influence == expected.influence
            assert torch.equal(found.mlp.gram, expected.mlp.gram)  # type: ignore[arg-type]
            for part, saliency in expected.attention.saliency.items():
                for kind, tensor in vars(saliency).items():
                    assert torch.equal(getattr(found.attention.saliency[part], kind), tensor)


def test_bfloat16_models_are_differentiated_in_float32(
    tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    folder, ids = tiny_llama(**SMALL, dtype="bfloat16"), torch.randint(0, 300, (4, 12))
    memory = StoredStatistics(Entry(tmp_path))
    collect(
        _decoder(folder, torch.bfloat16),
        ids,
        [torch.arange(4)],
        memory,
        with_gram=False,
        with_gradients=True,
    )
    (found,) = load_statistics(memory.entry, 1, CPU)
    assert found.mlp.gram is None
    w, g, _ = Reference(folder).gradients(ids, 1, "mlp.up_proj")
    # Hidden states between layers alone are bfloat16.
    _close(found.mlp.saliency["up"].absolute, (w * g).abs().sum(1), 0.02)


def test_windows_are_dealt_into_classes_by_loss_and_groups_at_random() -> None:
    order = torch.randperm(23)
    groups = deal(order, classes=5, groups=2, seed=7)
    assert sorted(torch.cat(groups).tolist()) == list(range(23))
    assert [len(group) for group in groups] == [3, 2, 3, 2, 3, 2, 2, 2, 2, 2]
    ranks = [sorted(order.tolist().index(int(w)) for w in group) for group in groups]
    for below, above in zip(range(0, 8, 2), range(2, 10, 2), strict=True):
        assert max(ranks[below] + ranks[below + 1]) < min(ranks[above] + ranks[above + 1])
    whole = torch.arange(400)
    one, other = deal(whole, 1, 2, seed=0)[0], deal(whole, 1, 2, seed=1)[0]
    assert one.tolist() == deal(whole, 1, 2, seed=0)[0].tolist() != other.tolist()
    assert abs(float(one.double().mean()) - 199.5) < 40  # spread over all of them
