# SPDX-License-Identifier: Apache-2.0
"""What is written piece by piece is what safetensors itself would write."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from prunec.compiler.model import tensor_file
from prunec.compiler.model.tensor_file import save

DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint64,
    torch.uint32,
    torch.uint16,
    torch.uint8,
    torch.bool,
]
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=6)
SPECS = st.tuples(st.lists(st.integers(0, 4), max_size=3), st.sampled_from(DTYPES))


def _random(shape: list[int], dtype: torch.dtype) -> Tensor:
    values = torch.randint(0, 100, shape)
    return (values % 2 if dtype == torch.bool else values).to(dtype)


@given(st.dictionaries(NAMES, SPECS, min_size=1, max_size=6), st.integers(1, 5))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_files_are_those_of_safetensors_to_the_byte(
    tmp_path: Path, specs: dict[str, tuple[list[int], torch.dtype]], piece: int
) -> None:
    tensors = {name: _random(*spec) for name, spec in specs.items()}
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_file, "_PIECE", piece)
        digest = save(ours, tensors, {"format": "pt"})
    save_file(tensors, theirs, metadata={"format": "pt"})
    assert ours.read_bytes() == theirs.read_bytes()
    assert digest == hashlib.sha256(ours.read_bytes()).hexdigest()


def test_views_are_written_as_the_values_that_they_show(tmp_path: Path) -> None:
    whole = torch.arange(20.0).reshape(4, 5)
    save(tmp_path / "file", {"a": whole.T, "b": whole[:, 1:3]}, {})
    written = load_file(tmp_path / "file")
    assert torch.equal(written["a"], whole.T)
    assert torch.equal(written["b"], whole[:, 1:3])


def test_values_are_rounded_as_torch_rounds_them(tmp_path: Path) -> None:
    exact = torch.randn(50, 3, dtype=torch.float64)
    save(tmp_path / "file", {"a": exact, "b": exact}, {}, {"a": torch.bfloat16})
    written = load_file(tmp_path / "file")
    assert torch.equal(written["a"], exact.to(torch.bfloat16))
    assert torch.equal(written["b"], exact)


def test_a_large_tensor_is_converted_in_pieces(
    tmp_path: Path, peak_growth: Callable[[str], int]
) -> None:
    grown = peak_growth(f"""
        from pathlib import Path
        import torch
        from prunec.compiler.model.tensor_file import save

        held = {{"a": torch.ones(30_000, 1_000, dtype=torch.float64)}}
        start()
        save(Path({str(tmp_path / "file")!r}), held, {{}}, {{"a": torch.float32}})
    """)
    assert (tmp_path / "file").stat().st_size >= 120e6
    assert grown < 90e6  # a second copy would take 120
