# SPDX-License-Identifier: Apache-2.0
"""What a folder is: a build, a pruned model or any other checkpoint, told from its files alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prunec.validators.errors import ValidationError
from prunec.validators.headers import (
    TensorHeader,
    read_header,
    read_json_object,
    value_blocks,
    weight_files,
)
from prunec.validators.manifest import MANIFEST, check_listing, check_manifest
from prunec.validators.shapes import LayerShape, is_prunable, layer_shapes

_HEAD = "lm_head.weight"
_EMBEDDING = "model.embed_tokens.weight"
_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
GRAPH = "model.onnx"
_CHECKPOINTS = ("hf", "vllm")  # exports that are checkpoints; the first one there is described
_EXPORTS = (*_CHECKPOINTS, "onnx")


@dataclass(frozen=True)
class Weights:
    """A checkpoint's sizes, from its safetensors headers.

    `parameters` counts a tied head once; `bytes` are those of the safetensors files;
    `kv_bytes_per_token` is for a cache of the weights' own dtype. The layers are empty, and what
    follows from them 0, for an architecture whose attention and MLP projections are not separate.
    """

    model_type: str
    dtypes: tuple[str, ...]
    files: int
    bytes: int
    parameters: int
    prunable_parameters: int
    kv_bytes_per_token: int
    layers: tuple[LayerShape, ...]


@dataclass(frozen=True)
class Artefact:
    """A folder, described. `problems` is empty if everything in it agrees."""

    folder: Path
    kind: Literal["build", "pruned", "model"]
    weights: Weights | None  # None: an ONNX graph, or they cannot be read and `problems` says why
    recipe: str | None
    report: Mapping[str, Any] | None
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool | None:
        """The verdict of the report; None without one."""
        verdict = self.report.get("passed") if self.report else None
        return verdict if isinstance(verdict, bool) else None

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as `prunec inspect --json` prints it."""
        weights = None
        if self.weights is not None:
            weights = vars(self.weights) | {
                "dtypes": list(self.weights.dtypes),
                "layers": [layer.as_dict() for layer in self.weights.layers],
            }
        return {
            "folder": str(self.folder),
            "kind": self.kind,
            "passed": self.passed,
            "problems": list(self.problems),
            "weights": weights,
            "recipe": self.recipe,
        }


def inspect(folder: Path, reading: Callable[[str], None] = lambda name: None) -> Artefact:
    """Describe a build's output, a model folder that prunec wrote, or any other checkpoint.

    Reads headers, not weights, unless a tied head is stored beside its embedding. What lists its
    files' hashes is also read once, to check them, and `reading` is told of each such file.
    ValidationError for a folder that is none of the three.
    """
    if not folder.is_dir():
        raise ValidationError(
            f"{folder} is not a folder" if folder.exists() else f"{folder} does not exist",
            hint="give the output folder of a build, or a folder with config.json",
        )
    if (folder / MANIFEST).exists() or any((folder / kind).is_dir() for kind in _EXPORTS):
        return _inspect_build(folder, reading)
    if not (folder / "config.json").is_file():
        raise ValidationError(
            f"{folder} holds neither a build nor a model",
            hint=f"a build has {MANIFEST} and hf/, a model has config.json and safetensors",
        )
    weights, problems = None, list[str]()
    if not (folder / GRAPH).is_file():  # a graph's weights are in its own form
        weights, problems = read_weights(folder)
    problems += check_listing(folder, reading)
    recipe = _text(folder / "prunec" / "recipe.yaml")
    kind: Literal["pruned", "model"] = "model" if recipe is None else "pruned"
    return Artefact(folder, kind, weights, recipe, None, tuple(problems))


def _inspect_build(folder: Path, reading: Callable[[str], None]) -> Artefact:
    problems = check_manifest(folder, reading)
    weights, report = None, None
    # None where models were judged and none was written; what is listed and gone is told already.
    kind = next((each for each in _EXPORTS if (folder / each).is_dir()), None)
    try:
        if kind in _CHECKPOINTS:  # a graph's weights are in its own form
            weights, wrong = read_weights(folder / kind)
            problems += [f"{kind}: {sentence}" for sentence in wrong]
    except ValidationError as error:
        problems.append(error.message)
    try:
        report = read_json_object(folder / "report" / "report.json")
    except ValidationError as error:
        problems.append(error.message)
    if weights is not None and report is not None:
        problems += _against_report(weights, report)
    recipe = _text(folder / kind / "prunec" / "recipe.yaml") if kind else None
    return Artefact(folder, "build", weights, recipe, report, tuple(problems))


def read_weights(folder: Path) -> tuple[Weights, list[str]]:
    """Sizes and layers of a checkpoint folder, and a sentence for everything that disagrees.

    ValidationError if the config or a safetensors file is missing or damaged.
    """
    config = read_json_object(folder / "config.json")
    problems: list[str] = []
    tensors: dict[str, TensorHeader] = {}
    files = weight_files(folder)
    for name, placed in files.items():
        held = read_header(folder / name)
        if placed is not None and placed != held.keys():
            odd = min(placed ^ held.keys())
            where = "is not in it" if odd in placed else "is in it all the same"
            problems.append(f"{name} is not the shard that the index describes: {odd} {where}")
        tensors |= held
    layers, wrong = layer_shapes(tensors, config)
    problems += wrong + _outside_layers(tensors, config) + _misstored(tensors, config)
    tied = bool(config.get("tie_word_embeddings"))
    own_head = tied and _has_own_head(folder, tensors)
    if own_head:
        problems.append(
            f"{_HEAD} is another than {_EMBEDDING}, and config.json ties the two: "
            "transformers uses it, other tools do not"
        )

    counted = dict(tensors)
    if tied and not own_head and _EMBEDDING in counted:
        counted.pop(_HEAD, None)
    prunable = {name: header for name, header in counted.items() if is_prunable(name)}
    value_bytes = max((header.bytes_per_value for header in prunable.values()), default=0)
    return Weights(
        model_type=str(config.get("model_type")),
        dtypes=tuple(sorted({header.dtype for header in tensors.values()})),
        files=len(files),
        bytes=sum((folder / name).stat().st_size for name in files),
        parameters=sum(header.parameters for header in counted.values()),
        prunable_parameters=sum(header.parameters for header in prunable.values()),
        kv_bytes_per_token=sum(2 * s.kv_heads * s.head_dim * value_bytes for s in layers),
        layers=layers,
    ), problems


def _outside_layers(tensors: Mapping[str, TensorHeader], config: Mapping[str, Any]) -> list[str]:
    """What is wrong with the embedding and the head."""
    if _EMBEDDING not in tensors:
        return []  # another architecture, or layer_shapes has said enough
    expected = [config.get("vocab_size"), config.get("hidden_size")]
    problems = [
        f"{name} has shape {list(tensors[name].shape)}; config.json says {expected}"
        for name in (_EMBEDDING, _HEAD)
        if name in tensors and list(tensors[name].shape) != expected
    ]
    if _HEAD not in tensors and config.get("tie_word_embeddings") is False:
        problems.append(f"{_HEAD} is missing, and config.json does not tie it to the embedding")
    return problems


def _has_own_head(folder: Path, tensors: Mapping[str, TensorHeader]) -> bool:
    """Whether a head is stored beside the embedding with other values: read up to where they
    differ."""
    if _HEAD not in tensors or _EMBEDDING not in tensors:
        return False
    head, embedding = tensors[_HEAD], tensors[_EMBEDDING]
    if (head.dtype, head.shape) != (embedding.dtype, embedding.shape):
        return True
    blocks = (value_blocks(folder, header) for header in (head, embedding))
    return any(one != other for one, other in zip(*blocks, strict=True))


def _misstored(tensors: Mapping[str, TensorHeader], config: Mapping[str, Any]) -> list[str]:
    """Matrices of another dtype than the config says. What loads them converts, and never tells."""
    stated = config.get("dtype") or config.get("torch_dtype")
    if not isinstance(stated, str) or stated not in _DTYPES or "quantization_config" in config:
        return []
    odd = {
        name: header.dtype
        for name, header in sorted(tensors.items())
        if is_prunable(name)
        and header.dtype in _DTYPES.values()
        and header.dtype != _DTYPES[stated]
    }
    if not odd:
        return []
    first, held = next(iter(odd.items()))
    return [
        f"config.json says {stated}; {len(odd)} tensors are of another dtype: {first} is {held}"
    ]


def _against_report(weights: Weights, report: Mapping[str, Any]) -> list[str]:
    """Numbers of the report that the files do not bear out."""
    stated = report.get("pruned")
    if not isinstance(stated, Mapping):
        return ["report/report.json says nothing of the pruned model"]
    return [
        f"report/report.json says {said!r} {what.replace('_', ' ')}; the files hold {held}"
        for what in ("parameters", "prunable_parameters", "bytes", "kv_bytes_per_token")
        if (said := stated.get(what)) != (held := getattr(weights, what))
    ]


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
