# SPDX-License-Identifier: Apache-2.0
"""Headers of safetensors files, read twice: by the compiler, and by validators that share no code
with it. Whatever the bytes, either is told what is wrong with them in one sentence."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prunec.compiler.model import headers as compiler_headers
from prunec.compiler.model.errors import ModelError
from prunec.validators import headers as validators_headers
from prunec.validators.errors import ValidationError

READERS = [
    pytest.param(compiler_headers.read_header, ModelError, id="compiler"),
    pytest.param(validators_headers.read_header, ValidationError, id="validators"),
]
GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
JUNK: list[Any] = [None, True, -1, 1.5, "", "08", [], [0], [8, 0], [0, 8, 9], [0, "8"], {}]
JUNK += [[False, True], [0, 8.0], {"0": 0, "1": 8}, [[0], [8]], [-8, 0], [0, 2**70], [0, None]]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["dtype", "shape", "data_offsets"]) | st.text(max_size=2), inner
        )
    ),
    max_leaves=8,
)


def _refused(path: Path, read: Callable[[Path], Any], refusal: type[Any]) -> str:
    with pytest.raises(refusal) as caught:
        read(path)
    message: str = caught.value.message
    assert "\n" not in message and str(path) in message and len(message) < 500 + len(str(path))
    return message


def _write(path: Path, header: Any, body: bytes = b"\0" * 8) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


@pytest.mark.parametrize(("read", "refusal"), READERS)
@pytest.mark.parametrize("field", ["dtype", "shape", "data_offsets"])
def test_a_tensor_that_is_described_by_the_wrong_things_is_named(
    tmp_path: Path, read: Callable[[Path], Any], refusal: type[Any], field: str
) -> None:
    for value in JUNK:
        if field == "dtype" and isinstance(value, str):
            continue  # a dtype that is not known
        path = _write(tmp_path / "x.safetensors", {"weight": GOOD | {field: value}})
        assert "weight" in _refused(path, read, refusal)
    missing = {key: value for key, value in GOOD.items() if key != field}
    path = _write(tmp_path / "x.safetensors", {"weight": missing})
    assert f"'weight' has no {field}" in _refused(path, read, refusal)


@pytest.mark.parametrize(("read", "refusal"), READERS)
def test_what_describes_no_tensors_at_all_is_refused(
    tmp_path: Path, read: Callable[[Path], Any], refusal: type[Any]
) -> None:
    for header in JUNK[:-7]:
        if header != {}:
            _refused(_write(tmp_path / "x.safetensors", header), read, refusal)
        _refused(_write(tmp_path / "x.safetensors", {"weight": header}), read, refusal)
    for wrong in (
        {"a": GOOD, "b": GOOD},
        {"a": GOOD | {"data_offsets": [8, 16]}},
        {"a": GOOD | {"shape": [3]}},
    ):
        _refused(_write(tmp_path / "x.safetensors", wrong), read, refusal)


@pytest.mark.parametrize(("read", "refusal"), READERS)
@example(header={"a": {"dtype": "F32", "shape": [], "data_offsets": ""}})
@example(header={"a": {"dtype": "F32", "shape": [], "data_offsets": []}})
@example(header={"a": {"dtype": "F32", "shape": "", "data_offsets": [0, 0]}})
@given(header=st.dictionaries(st.text(max_size=2), JSON, max_size=2) | JSON)
def test_any_json_as_a_header_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    read: Callable[[Path], Any],
    refusal: type[Any],
    header: Any,
) -> None:
    path = _write(tmp_path_factory.getbasetemp() / "x.safetensors", header, b"")
    try:
        read(path)
    except refusal as error:
        assert "\n" not in error.message


def test_an_index_that_leaves_its_folder_is_told_on_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a\\nb": "../x"}}')
    message = _refused(tmp_path, validators_headers.weight_files, ValidationError)
    assert "places 'a\\nb' outside its folder: '../x'" in message


@pytest.mark.parametrize(("read", "refusal"), READERS)
def test_a_sound_header_is_read(
    tmp_path: Path, read: Callable[[Path], Any], refusal: type[Any]
) -> None:
    header: dict[str, Any] = {
        "__metadata__": {"format": "pt"},
        "weight": GOOD,
        "none": GOOD | {"shape": [0], "data_offsets": [8, 8]},
    }
    assert list(read(_write(tmp_path / "x.safetensors", header))) == ["weight", "none"]
