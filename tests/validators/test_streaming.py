# SPDX-License-Identifier: Apache-2.0
"""A model whose weights stay on disk says what it says in memory, and takes a part of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunec.compiler.model.folder import facts_from_folder
from prunec.compiler.model.layout import LayerSpec, tensor_shapes
from prunec.exporters import hf
from prunec.exporters.artefact import Provenance
from prunec.validators import streaming
from prunec.validators.completion import complete_with
from prunec.validators.errors import ValidationError
from prunec.validators.headers import TensorHeader, read_header
from prunec.validators.loading import open_model
from prunec.validators.perplexity import measure_text

SOME = 2**28  # more than these models need, and less than makes one be read whole
WINDOWS = torch.randint(0, 300, (7, 12), generator=torch.Generator().manual_seed(1))


def _per_layer(source: Path, folder: Path) -> Path:
    """An export with a layer without attention, one without an MLP, and uneven query groups."""
    facts = facts_from_folder(source)
    layout = (
        LayerSpec(0, 0, 16, 40),
        LayerSpec(2, 2, 16, 0),
        LayerSpec(3, 2, 16, 17, query_groups=(1, 2)),
    )
    draw = torch.Generator().manual_seed(2)
    tensors = (
        (name, torch.randn(shape, generator=draw) * shape[-1] ** -0.5)
        for name, shape in tensor_shapes(facts, layout).items()
    )
    folder.mkdir()
    origin = Provenance("", {}, "dense", "none", "none")
    hf.export(folder, source, facts, layout, "per_layer", tensors, torch.float32, 20_000, origin)
    return folder


@pytest.fixture(scope="module", params=["llama", "tied", "gemma2", "gemma3_text", "per layer"])
def folder(
    request: pytest.FixtureRequest,
    tiny_llama: Callable[..., Path],
    tiny_family: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    if request.param == "llama":
        return tiny_llama(shard_bytes=20_000)
    if request.param == "tied":
        return tiny_llama(tied=True)
    if request.param == "gemma2":
        return tiny_family("gemma2", attn_logit_softcapping=0.2, final_logit_softcapping=2.0)
    if request.param == "per layer":
        return _per_layer(tiny_llama(layers=3), tmp_path_factory.mktemp("exported") / "hf")
    return tiny_family(request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_measures_what_is_measured_in_memory(folder: Path, dtype: torch.dtype) -> None:
    """Its last batch is smaller, and the files are of float32."""
    whole, streamed = open_model(folder, dtype), open_model(folder, dtype, memory=SOME)
    assert streamed.streamed and all(weight.is_meta for weight in streamed.model.parameters())
    due, found = (
        measure_text(model, WINDOWS, keep=300, batch_tokens=36) for model in (whole, streamed)
    )
    assert found.perplexity.window_losses == pytest.approx(due.perplexity.window_losses, rel=1e-6)
    assert due.reference and found.reference
    torch.testing.assert_close(found.reference.log_probs, due.reference.log_probs)
    assert all(weight.is_meta for weight in streamed.model.parameters())


def test_it_completes_what_is_completed_in_memory(folder: Path) -> None:
    due, found = (
        complete_with(open_model(folder, torch.float32, memory=memory), "def f(", 6)
        for memory in (None, SOME)
    )
    assert found == due


def test_a_layer_is_read_once_for_all_windows_whose_states_fit(
    saved_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """7 windows of 12 tokens at 128 bytes of hidden state: 10,752 bytes."""
    reads: Counter[int] = Counter()

    def counted(path: Path, header: TensorHeader, dtype: torch.dtype) -> torch.Tensor:
        reads[header.begin] += 1
        return read(path, header, dtype)

    read = streaming._read
    monkeypatch.setattr(streaming, "_read", counted)
    first = read_header(saved_llama / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    parts = open_model(saved_llama, torch.float32, memory=1).streamed
    assert parts is not None
    for room, passes in ((10_752, 1), (10_751, 2), (0, 7)):
        reads.clear()
        done: list[int] = []
        assert len([*parts.logits(WINDOWS.split(1), room, done.append)]) == 7
        assert reads[first.begin] == passes
        assert done == sorted(done) and done[-1] == 7


def test_what_fits_is_read_whole(saved_llama: Path) -> None:
    assert open_model(saved_llama, torch.float32, memory=2**31).streamed is None


def test_folders_are_refused_as_they_are_in_memory(llama: Path, tmp_path: Path) -> None:
    weights = load_file(llama / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    damaged = {
        "missing": {k: v for k, v in weights.items() if k != name},
        "unexpected": weights | {"stranger": torch.zeros(2)},
        "reshaped": weights | {name: weights[name][1:].clone()},
    }
    for tensors in damaged.values():
        save_file(tensors, llama / "model.safetensors", metadata={"format": "pt"})
        said = []
        for memory in (None, SOME):
            with pytest.raises(ValidationError) as refused:
                open_model(llama, torch.float32, memory=memory)
            said.append(refused.value.message)
        assert said[0] == said[1]


def test_weights_are_in_memory_a_part_at_a_time(
    tiny_llama: Callable[..., Path], peak_growth: Callable[[str], int]
) -> None:
    """Of 100 MB, a layer of 20 MB."""
    folder = tiny_llama(layers=5, hidden=128, ffn=26_000, dtype="bfloat16")
    assert sum(path.stat().st_size for path in folder.glob("*.safetensors")) > 95e6
    grown = peak_growth(f"""
        from pathlib import Path
        import torch
        from prunec.validators.loading import open_model
        from prunec.validators.perplexity import measure_text

        torch.ones(64, 64, dtype=torch.bfloat16) @ torch.ones(64, 64, dtype=torch.bfloat16)
        start()
        model = open_model(Path({str(folder)!r}), torch.bfloat16, memory=2**28)
        measure_text(model, torch.arange(64).view(4, 16))
    """)
    assert grown < 70e6
