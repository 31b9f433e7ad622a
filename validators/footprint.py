# SPDX-License-Identifier: Apache-2.0
"""What an artefact takes: bytes of its files, and of memory once its runtime has loaded it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prunec.validators import child
from prunec.validators.errors import ValidationError
from prunec.validators.measurements import FootprintResult

_WORKER = "prunec.validators.footprint_worker"


@dataclass(frozen=True)
class Resident:
    """Bytes of memory that a loaded artefact takes; None if not measured, for `reason`."""

    bytes: int | None
    reason: str | None = None


def file_bytes(folder: Path) -> int:
    """Bytes of all files below a folder: weights, tokenizer and what else was put there.

    Hidden files and folders are left out: tools keep caches and histories in them.
    ValidationError if there is no such folder.
    """
    if not folder.is_dir():
        raise ValidationError(f"{folder} is not a folder")
    return sum(
        path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )


def resident_bytes(
    kind: str, folder: Path, *, dtype: str | None = None, trust_remote_code: bool = False
) -> Resident:
    """Memory of a process on the CPU once `kind`, `hf` or `onnx`, has loaded a folder and answered
    a few tokens, beyond what it took with the runtime alone.

    It counts what the process has of its own and the files of the folder that it has mapped, not
    the libraries' own code. `hf` loads weights in `dtype`, or in the one that they are stored in.
    vLLM is not measured: its engine reserves its cache, whatever the model takes.
    """
    if kind == "vllm":
        return Resident(
            None, "vLLM's engine reserves memory for its cache, whatever the model takes"
        )
    if not Path("/proc/self/smaps").exists():
        return Resident(None, "this system does not tell what memory a process has mapped")
    request = {
        "kind": kind,
        "folder": str(folder.resolve()),
        "dtype": dtype,
        "trust_remote_code": trust_remote_code,
    }
    try:
        return Resident(int(child.ask(_WORKER, request)["bytes"]))
    except ValidationError as error:
        return Resident(None, error.message)


def measure_footprint(
    kind: str,
    folder: Path,
    dense: Path | None = None,
    *,
    dense_file_bytes: int | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> FootprintResult:
    """An artefact of some kind, and the dense model in the same form if it is given.

    dense_file_bytes: what its files would take, where its folder holds another dtype
    dtype: what `hf` loads the weights of both in
    `trust_remote_code` runs the folders' own modeling files, which per-layer models bring.
    """

    places = [folder] if dense is None else [folder, dense]
    found = [
        resident_bytes(kind, place, dtype=dtype, trust_remote_code=trust_remote_code)
        for place in places
    ]
    if dense_file_bytes is None and dense is not None:
        dense_file_bytes = file_bytes(dense)
    return FootprintResult(
        artefact=kind,
        file_bytes=file_bytes(folder),
        dense_file_bytes=dense_file_bytes,
        resident_bytes=found[0].bytes,
        dense_resident_bytes=None if dense is None else found[1].bytes,
        note=next((one.reason for one in found if one.reason), None),
    )
