# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from prunec.compiler.model.checkpoint import Checkpoint, write_checkpoint
from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.folder import facts_from_folder
from prunec.compiler.model.headers import INDEX, SINGLE, read_headers
from prunec.compiler.model.tensor_file import TensorSpec

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def folder(tiny_llama: Callable[..., Path], tmp_path: Path) -> Path:
    return shutil.copytree(tiny_llama(layers=2, hidden=32, head_dim=8, ffn=24), tmp_path / "model")


def _same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name])
        for name in first
    )


def _change(folder: Path, name: str, tensor: Tensor | None) -> None:
    weights = load_file(folder / SINGLE)
    weights.pop(name, None)
    save_file(weights | ({name: tensor} if tensor is not None else {}), folder / SINGLE)


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard_bytes", [None, 20_000])
def test_a_layer_is_its_tensors_as_stored(
    tiny_llama: Callable[..., Path], shard_bytes: int | None
) -> None:
    options = {"layers": 11, "hidden": 16, "head_dim": 4, "ffn": 8, "biased": True}
    folder = tiny_llama(**options, dtype="bfloat16", shard_bytes=shard_bytes)
    stored = {n: t for f in folder.glob("*.safetensors") for n, t in load_file(f).items()}
    checkpoint = Checkpoint(folder, facts_from_folder(folder))
    for index in (0, 1, 10):  # 1 is a prefix of 10
        prefix = f"model.layers.{index}."
        expected = {n.removeprefix(prefix): t for n, t in stored.items() if n.startswith(prefix)}
        assert _same(checkpoint.layer(index), expected)
    assert torch.equal(checkpoint.tensor("model.norm.weight"), stored["model.norm.weight"])


def test_tensors_that_the_config_does_not_call_for_are_left_alone(folder: Path) -> None:
    """As Llama 2's checkpoints have them: buffers of an old implementation."""
    before = Checkpoint(folder, facts_from_folder(folder)).layer(0)
    _change(folder, "model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(4))
    after = Checkpoint(folder, facts_from_folder(folder)).layer(0)
    assert _same(after, before)


def test_what_was_read_outlives_the_file(folder: Path) -> None:
    tensor = Checkpoint(folder, facts_from_folder(folder)).tensor("model.norm.weight")
    expected = tensor.tolist()
    (folder / SINGLE).write_bytes(b"\0" * (folder / SINGLE).stat().st_size)
    assert tensor.tolist() == expected


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_weight_that_is_not_finite_is_refused_when_it_is_read(folder: Path, value: float) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    weight = load_file(folder / SINGLE)[name]
    weight[3, 5] = value
    _change(folder, name, weight)
    checkpoint = Checkpoint(folder, facts_from_folder(folder))
    checkpoint.layer(0)
    with pytest.raises(ModelError, match=r"model.layers.1.mlp.up_proj.weight holds a NaN"):
        checkpoint.layer(1)


@pytest.mark.parametrize("damage", ["gone", "garbage", "cut", "another dtype"])
def test_a_file_that_changed_after_its_header_was_read_is_a_model_error(
    folder: Path, damage: str
) -> None:
    checkpoint = Checkpoint(folder, facts_from_folder(folder))
    path = folder / SINGLE
    if damage == "gone":
        path.unlink()
    elif damage == "garbage":
        path.write_bytes(b"\xff" * 4000)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.write_bytes(path.read_bytes().replace(b'"F32"', b'"F99"'))
    with pytest.raises(ModelError, match="cannot be read"):
        checkpoint.tensor("model.norm.weight")


# --- writing --------------------------------------------------------------------------------------


def _write(folder: Path, tensors: dict[str, Tensor], limit: int) -> list[str]:
    specs = {name: TensorSpec(t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    return write_checkpoint(folder, specs, reversed(tensors.items()), limit)


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 5), max_size=3), st.sampled_from(DTYPES)),
        min_size=1,
        max_size=8,
    ),
    st.integers(1, 400),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_what_is_written_is_what_is_read_back_whatever_the_shards(
    tmp_path: Path, specs: list[tuple[list[int], torch.dtype]], limit: int
) -> None:
    folder = tmp_path / "out"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    tensors = {f"t{i}": torch.randn(s).to(d) for i, (s, d) in enumerate(specs)}

    files = _write(folder, tensors, limit)

    assert sorted(path.name for path in folder.iterdir()) == sorted(files)
    shards = {name: load_file(folder / name) for name in files if name != INDEX}
    assert _same({n: t for shard in shards.values() for n, t in shard.items()}, tensors)
    assert list(read_headers(folder)) and read_headers(folder).keys() == tensors.keys()
    for shard in shards.values():
        assert len(shard) == 1 or sum(t.nbytes for t in shard.values()) <= limit
    if len(shards) == 1:
        assert files == [SINGLE]
    else:
        index = json.loads((folder / INDEX).read_text())
        assert index["weight_map"] == {n: f for f, shard in shards.items() for n in shard}
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())


@pytest.mark.parametrize(
    "came, complaint",
    [
        ({"a": torch.zeros(3)}, r"^b is absent; by its layout it is \(2, 2\)"),
        ({"a": torch.zeros(2, 1)}, r"^a is \(2, 1\); by its layout it is \(3,\)"),
        ({"c": torch.zeros(1)}, r"^c is \(1,\); by its layout it is absent"),
    ],
)
def test_tensors_that_are_not_those_of_the_layout_are_refused(
    tmp_path: Path, came: dict[str, Tensor], complaint: str
) -> None:
    specs = {"a": TensorSpec(torch.float32, (3,)), "b": TensorSpec(torch.float32, (2, 2))}
    with pytest.raises(ModelError, match=complaint):
        write_checkpoint(tmp_path, specs, came.items(), 10**6)


def test_tensors_are_converted_and_written_one_at_a_time(
    tmp_path: Path, peak_growth: Callable[[str], int]
) -> None:
    grown = peak_growth(f"""
        from pathlib import Path
        import torch
        from prunec.compiler.model.checkpoint import write_checkpoint
        from prunec.compiler.model.tensor_file import TensorSpec

        shape, names = (20_000, 1_000), [f"t{{i}}" for i in range(5)]
        specs = {{name: TensorSpec(torch.bfloat16, shape) for name in names}}
        tensors = ((name, torch.full(shape, 1.5)) for name in names)
        start()
        write_checkpoint(Path({str(tmp_path)!r}), specs, tensors, 10**9)
    """)
    assert (tmp_path / SINGLE).stat().st_size > 200e6
    assert grown < 130e6  # of tensors that take 80 MB when they come
