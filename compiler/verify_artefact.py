# SPDX-License-Identifier: Apache-2.0
"""Opens all that an artefact holds: every tensor is read, tokenizer, config and graph are opened.

Hashes say that files are as they were written; this says that what was written can be used.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

import prunec.exporters.hf  # noqa: F401 - lets transformers know per-layer models
from prunec.compiler.model.errors import ModelError
from prunec.exporters.code import brings_only_our_code
from prunec.validators.artefact import GRAPH
from prunec.validators.errors import ValidationError
from prunec.validators.headers import read_header, weight_files
from prunec.validators.loading import open_tokenizer

#: Told what is being read: a file's name, or a tensor's.
Reading = Callable[[str], None]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_SHA1 = re.compile(r"[0-9a-f]{40}")
_LINES = re.compile(r"\s*\n\s*")


def check_artefact(folder: Path, reading: Reading) -> tuple[list[str], list[str]]:
    """(problems, notes), a sentence each. One tensor is in memory at a time.

    Headers against config.json, hashes and the report are `validators.artefact.inspect`'s.
    """
    problems, notes = list[str](), list[str]()
    trusted = brings_only_our_code(folder)
    if not trusted:
        notes.append(f"{folder} brings code, or leads to some, that this prunec did not write")
        notes.append("none of it was run, so what needs it was not opened")
    graph = (folder / GRAPH).is_file()
    if graph:
        wrong, told = _check_graph(folder, reading)
        problems, notes = [*problems, *wrong], [*notes, *told]
    else:
        problems += _check_tensors(folder, reading)
    config, wrong = _open_config(folder, trusted)
    problems += wrong
    if config is not None and not graph:
        problems += _check_names(folder, config)
    try:
        open_tokenizer(folder, trust_remote_code=trusted)
    except ValidationError as error:
        if trusted or not any(folder.glob("*.py")):
            problems.append(error.message)
    return problems, notes


def check_hub_hashes(folder: Path, reading: Reading) -> tuple[list[str], int]:
    """What is wrong with a snapshot of the hub's cache, and how many files could be checked.

    There every file is a link to one that is named by its content: by its SHA-256, or if it is
    small by git's SHA-1 (https://huggingface.co/docs/huggingface_hub/guides/manage-cache).
    """
    problems, checked = list[str](), 0
    for path in sorted(folder.rglob("*")):
        if not (path.is_symlink() and path.is_file()):
            continue
        name = path.resolve().name
        if _SHA256.fullmatch(name):
            digest: Any = hashlib.sha256()
        elif _GIT_SHA1.fullmatch(name):
            digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        else:
            continue
        relative = path.relative_to(folder).as_posix()
        reading(relative)
        with path.open("rb") as file:
            while piece := file.read(1 << 22):
                digest.update(piece)
        checked += 1
        if digest.hexdigest() != name:
            problems.append(f"{relative} was changed: it is not what the hub's cache calls it")
    return problems, checked


def _check_tensors(folder: Path, reading: Reading) -> list[str]:
    """Reads every tensor. Damage that no tensor can be read behind is one sentence."""
    problems: list[str] = []
    try:
        for file in weight_files(folder):
            headers = read_header(folder / file)
            with safe_open(folder / file, framework="pt") as shard:
                for name, header in headers.items():
                    reading(name)
                    tensor: torch.Tensor = shard.get_tensor(name)
                    if tuple(tensor.shape) != header.shape:
                        problems.append(f"{file}: {name} does not have the shape of its header")
                    if tensor.is_floating_point() and not tensor.float().isfinite().all():
                        problems.append(f"{file}: {name} holds a NaN or an infinity")
    except ValidationError as error:
        problems.append(error.message)
    except (SafetensorError, OSError) as error:
        problems.append(f"the weights of {folder} cannot be read: {error}")
    return problems


def _open_config(folder: Path, trusted: bool) -> tuple[Any, list[str]]:
    """The config as transformers opens it. None, and no problem, where it needs foreign code."""
    try:
        return AutoConfig.from_pretrained(
            str(folder), trust_remote_code=trusted, local_files_only=True
        ), []
    except Exception as error:  # a config can fail in any way
        if not trusted and "trust_remote_code" in str(error):
            return None, []
        return None, [f"config.json of {folder} does not open: {_one_line(error)}"]


def _check_names(folder: Path, config: Any) -> list[str]:
    """Whether the class that the config names wants the tensors that are there, and no others.

    Nothing to say of a class that this transformers does not have, such as vLLM's DeciLM.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return []
    try:
        held = {
            name: header.shape
            for file in weight_files(folder)
            for name, header in read_header(folder / file).items()
        }
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except ValidationError:  # told already
        return []
    except (ValueError, OSError, RuntimeError, StrictDataclassError) as error:
        return [f"{folder} cannot be loaded by transformers: {_one_line(error)}"]
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = {name for name in model.all_tied_weights_keys if name not in held}
    odd = [n for n, shape in sorted(wanted.items()) if n not in tied and held.get(n) != shape]
    return [
        f"{folder}: {name} is {held.get(name, 'absent')}; by config.json it is {wanted[name]}"
        for name in odd[:3]
    ]


def _check_graph(folder: Path, reading: Reading) -> tuple[list[str], list[str]]:
    """The graph by onnx's own checker, its weights one by one, and ONNX Runtime's opinion."""
    if find_spec("onnx") is None or find_spec("onnx_ir") is None:
        return [], [f"{folder / GRAPH} was not opened: pip install 'prunec[onnx]'"]
    import onnx

    try:
        reading(GRAPH)
        onnx.checker.check_model(folder / GRAPH, full_check=True)
        problems = list(_check_external(folder, reading))
    except Exception as error:  # protobuf, the checker and shape inference have no common base
        return [f"{folder / GRAPH} is not valid ONNX: {_one_line(error)}"], []
    if find_spec("onnxruntime") is None:
        return problems, [f"ONNX Runtime is not installed and did not open {folder / GRAPH}"]
    if not problems:
        from prunec.exporters.onnx_check import Session

        try:
            Session(folder)
        except ModelError as error:
            problems.append(error.message)
    return problems, []


def _check_external(folder: Path, reading: Reading) -> Iterator[str]:
    """A sentence for every tensor that lies elsewhere, is cut off or is not finite."""
    import numpy as np
    import onnx_ir as ir

    for name, value in ir.load(folder / GRAPH).graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            yield f"{GRAPH}: {name} has no value"
            continue
        reading(name)
        if isinstance(tensor, ir.ExternalTensor):
            place = str(tensor.location)
            if Path(place).name != place:
                yield f"{GRAPH} places {name} outside its folder: {place!r}"
                continue
            file = folder / place
            end = (tensor.offset or 0) + (tensor.length or 0)
            if not file.is_file() or file.stat().st_size < end:
                yield f"{place} is missing or cut short: {name} is not in it"
                continue
        array = tensor.numpy()
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            yield f"{GRAPH}: {name} holds a NaN or an infinity"


def _one_line(error: Exception) -> str:
    return _LINES.sub(" ", str(error).strip())[:300] or type(error).__name__
